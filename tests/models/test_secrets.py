"""Passwords and tokens of addresses, which are neither logged, nor in an error, nor in the name of a file."""

import argparse

import pytest

from models.errors import ConfigError, UserError, WeightsError
from models.secrets import without_secrets
from utils import cli
from utils.detect.streams import stream_name
from utils.text import shorten

SECRET = [
    "rtsp://me:s3cret@host:554/live",
    "rtsp://me:at@s3cret@host/live",
    "rtsp://me:slash/s3cret@host/live?x=1",
    "rtsp://me:what?s3cret@host/live",
    "rtsp://me:comma,'s3cret@host/live",
    "rtsp://me:slash/s3cret@host/user=me&password=s3cret",
    "http://host/live?user=me&pwd=s3cret",
    "http://host/live?channel=s3cret",
    "http://host/live#token=s3cret",
    "http://host/user=admin&password=s3cret&channel=1",
    "http://host/user=admin_password=s3cret_channel=1_stream=0.sdp?real_stream",
    "http://host/user=admin&password=sl/s3cret&channel=1",
    "http://host/user=admin&password=semi;s3cret,s3cret",
    "http://host/cam/user%3Dadmin%26password%3Ds3cret",
    "http://host/a;password=s3cret",
    "http://host/a;jsessionid=s3cret/b.mp4",
    "http://host/a;s3cret",
    "http://host/a%3Btoken%253Ds3cret",
    "HTTP://host/a,token=s3cret",
    "http://host/rtsp://me:s3cret@other/live",
    "http://host/rtsp:/s3cret@other/live",
    "ftp:/me:s3cret@host/a.mp4",
    "/home/me/http:/me:s3cret@host/a.jpg",
    "../s3:/host/a.mp4?token=s3cret",
    "http:/host/user=admin&password=s3cret&channel=1",
    "\x1b[1mhttp:/me:s3cret@host/exp\x1b[0m",
    "a_letter_or_more_before_it_http://me:s3cret@host/exp",
    "http://host/a.jpg?x,http://me:s3cret@other/b.jpg",
    "http://host/a.jpg,http://me:s3cret@other/b.jpg",
]


@pytest.mark.parametrize("address", SECRET)
def test_no_secret_of_an_address_is_shown(address, log, capsys):
    """Not in the first line of a log or another one, in an error, or in the name of a stream's files."""
    cli.log_options("detect", argparse.Namespace(source=[address, "0"], imgsz=None))
    cli.LOGGER.warning("%s: %s cannot be read", "rejected", address)

    def fail(_):
        raise UserError(f"the stream {address} cannot be opened")

    assert cli.run_script(fail, cli.Parser(), []) == 2
    errors = [str(kind(f"{address}, which is not there")) for kind in (UserError, ConfigError, WeightsError)]
    shown = f"{log} {errors} {capsys.readouterr().err} {shorten(address + 'x' * 99)}"
    for text in (shown, stream_name(without_secrets(address))):
        assert "host" in text
        assert "s3cret" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://host/user=admin&password=X&channel=1", "http://host/?channel=1"),
        ("http://host/user=admin_password=X_channel=12_stream=0.sdp", "http://host/?channel=12"),
        ("http://host/cam/realmonitor?channel=2&subtype=1", "http://host/cam/realmonitor?channel=2&subtype=1"),
        ("['rtsp://a:b@[::1]:554/live', '0'], imgsz=640", "['rtsp://[::1]:554/live', '0'], imgsz=640"),
        ("see https://docs.ultralytics.com/a_b/c-d.html.", "see https://docs.ultralytics.com/a_b/c-d.html."),
        (r"C:/run=3/a;b.pt and C:\a", r"C:/run=3/a;b.pt and C:\a"),
        ("imgsz=640, /data/x=1/a;b?c#d.jpg: a@b", "imgsz=640, /data/x=1/a;b?c#d.jpg: a@b"),
        ("tcp://127.0.0.1:80", "tcp://127.0.0.1:80"),
        ("a" * 100_000 + "://" + "'" * 100_000, "a" * 100_000 + "://" + "'" * 100_000),
    ],
)
def test_the_rest_of_a_text_stays(text, expected):
    assert without_secrets(text) == expected
