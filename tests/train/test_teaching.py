"""Teachers: the losses, what teaches what, and trainings that are taught."""

import copy
import csv
import math

import pytest
import torch
import yaml

import train
from models import create_backbone, create_model
from models.errors import UserError
from tests.helpers import TINY_BACKBONE, pictures, randomize_, save, tiny, tiny_backbone, write
from tests.runs import NAMES, make_data, make_folders, stopped
from utils.checkpoint import read_checkpoint
from utils.train.teaching import losses
from utils.train.teaching.features import FEATURE_LOSSES
from utils.train.teaching.imitation import Imitation, pair_modules, translation
from utils.train.teaching.lesson import Lesson
from utils.train.teaching.outputs import dense
from utils.train.teaching.teacher import Prepared, Teacher, open_teacher

ANCHORS = [[20, 20, 30, 30], [40, 40, 60, 60]]
TWO_LEVELS = [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [32, 3, 2]]]
HEADS = {
    "anchor-free": tiny(),
    "anchors": tiny(anchors=ANCHORS, head=[*TWO_LEVELS, [[3, 4], 1, "Detect", ["nc", "anchors"]]]),
    "end2end": tiny(end2end=True),
    "masks": tiny(anchors=ANCHORS, head=[*TWO_LEVELS, [[3, 4], 1, "Segment", ["nc", "anchors", 8, 16]]]),
    "masks without anchors": tiny(head=[*TWO_LEVELS, [[3, 4], 1, "Segment", ["nc", 8, 16]]]),
    "classes": tiny(backbone=[*TINY_BACKBONE, TWO_LEVELS[0]], head=[[-1, 1, "Classify", ["nc"]]]),
}
ONE_LEVEL = tiny(backbone=[*TINY_BACKBONE, TWO_LEVELS[0]], head=[[[3], 1, "Detect", ["nc"]]])
OPTIONS = {"teacher_loss": "cwd", "teacher_weight": 1.0, "teacher_off": 0, "imitate": None, "imgsz": 64}
OPTIONS |= {"multi_scale": 0.0, "seed": 0}
RIFORMER = {"layers": [1, 1, 2, 1], "embed_dims": [8, 8, 16, 16]}


def maps(*channels):
    """Return a picture's map, (1, C, 1, W), from the values of its channels."""
    return torch.tensor(channels, dtype=torch.float64)[None, :, None]


# Losses ---------------------------------------------------------------------------------------------------------------
def test_channels_are_compared_as_distributions_over_their_cells():
    teacher, student = maps([math.log(3), 0.0], [5.0, 5.0]), maps([0.0, 0.0], [1.0, 1.0])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert losses.channel_divergence(student, teacher).item() == pytest.approx(divergence / 2)
    assert losses.channel_divergence(teacher + 7, teacher).item() == pytest.approx(0)
    p = math.sqrt(3) / (1 + math.sqrt(3))
    softer = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert losses.channel_divergence(student, teacher, temperature=2).item() == pytest.approx(4 * softer / 2)


def test_normalized_maps_have_mean_0_and_variance_1_over_the_batch():
    batch = torch.cat([maps([0.0, 2.0]), maps([4.0, 6.0])])
    expected = torch.tensor([-3.0, -1.0, 1.0, 3.0], dtype=torch.float64) / math.sqrt(5)
    torch.testing.assert_close(losses.normalize(batch).flatten(), expected, rtol=1e-5, atol=0)
    assert losses.normalize(maps([3.0])).item() == 0


def test_the_loss_of_normalized_maps_is_one_minus_their_correlation():
    own, wanted = torch.randn(2, 2, 3, 1, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))[
        :, :, 0
    ]
    r = torch.corrcoef(torch.stack([own.flatten(), wanted.flatten()]))[0, 1].item()
    loss = losses.correlation_loss(losses.normalize(own), losses.normalize(3 * wanted - 1))
    assert loss.item() == pytest.approx(1 - r, abs=1e-4)


def test_squares_count_where_the_teacher_is_sure():
    student, teacher = maps([1.0, 2.0], [1.0, 2.0]), maps([0.0, 0.0], [2.0, 2.0])
    scores = maps([1.0, 3.0])
    assert losses.weighted_square(student, teacher, scores).item() == pytest.approx((1 * 1 + 3 * 2) / 4)
    assert losses.weighted_square(student, teacher, scores / 100).item() == pytest.approx(0.07)  # at most by its sum


def test_losses_of_scores_boxes_and_classes():
    own, wanted = torch.zeros(1, dtype=torch.float64), torch.tensor([math.log(3)], dtype=torch.float64)
    assert losses.binary_divergence(own, wanted).item() == pytest.approx(0.25 * math.log(2))
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0]])
    assert losses.box_gap(boxes[0], boxes[1]).item() == pytest.approx(4 / 3, abs=1e-5)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    logits = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    assert losses.class_divergence(*logits, temperature=1).item() == pytest.approx(divergence)
    assert losses.relative_square(maps([1.0, 2.0]), maps([2.0, 4.0])).item() == pytest.approx(0.25)


# What teaches what ----------------------------------------------------------------------------------------------------
def build(cfg, seed=0):
    model = randomize_(create_model(cfg), seed).double()
    model.names = dict(enumerate(NAMES))
    model.args = type("Args", (), {"box": 7.5, "cls": 0.5, "dfl": 1.5, "epochs": 3, "overlap_mask": True})()
    return model.eval()


def attached(teacher, student, **options):
    lesson = Lesson(teacher, student, {**OPTIONS, **options})
    lesson.features.adapters.double()
    lesson.attach(student, student, torch.device("cpu"))
    return lesson


def compare(lesson, student, x):
    """Return the losses of a lesson on pictures."""
    lesson.watches[1].start()
    with torch.no_grad():
        lesson.asked(x)
    lesson.watches[0].start()
    student(x)
    return lesson.losses(lesson.watches[0].stop(), lesson.watches[1].stop())


@pytest.fixture
def no_card(monkeypatch):
    """Let lessons not count what they cost, which takes longest here."""
    monkeypatch.setattr(Lesson, "card", lambda *_: "")


@pytest.mark.usefixtures("no_card")
@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("anchor-free", "pkd"),
        ("anchors", "l2"),
        ("end2end", "l2"),
        ("masks", "cwd"),
        ("masks without anchors", "pkd"),
        ("classes", "cwd"),
    ],
)
def test_a_copy_teaches_nothing_and_another_does(head, kind):
    student, x = build(HEADS[head]), pictures(64, 64)
    lesson = attached(Teacher("copy", copy.deepcopy(student), whole=True), student, teacher_loss=kind)
    assert not lesson.features.adapters
    assert lesson.why_not == ""
    found = compare(lesson, student, x)
    assert tuple(found) == lesson.names()
    assert all(abs(loss.item()) < 1e-9 for loss in found.values())
    other = attached(Teacher("other", build(HEADS[head], seed=1), whole=True), student, teacher_loss=kind)
    assert all(loss.item() > 1e-6 for loss in compare(other, student, x).values())


@pytest.mark.parametrize("head", ["anchor-free", "anchors"])
def test_what_a_head_gives_in_every_place_is_what_it_predicts(head):
    model = build(HEADS[head])
    predictions, raw = model(pictures(64, 96))
    found = dense(model.model[-1], raw)
    centres, sides = (found.boxes[..., :2] + found.boxes[..., 2:]) / 2, found.boxes[..., 2:] - found.boxes[..., :2]
    scores = found.classes.sigmoid() * (1 if found.objectness is None else found.objectness.sigmoid())
    mine = torch.cat([centres, sides, scores], 2).transpose(1, 2)
    torch.testing.assert_close(mine, predictions, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("no_card")
@pytest.mark.parametrize("kind", FEATURE_LOSSES)
def test_steps_bring_a_student_nearer_to_a_wider_teacher(kind):
    student, x = build(HEADS["anchors"]).train(), pictures(64, 64)
    teacher = build({**HEADS["anchors"], "width_multiple": 1.0}, seed=1)
    lesson = attached(Teacher("wide", teacher, whole=True), student, teacher_loss=kind)
    assert len(lesson.features.adapters) == 2
    adam = torch.optim.Adam([*student.parameters(), *lesson.features.adapters.parameters()], lr=0.01)
    history = []
    for _ in range(12):
        total = sum(compare(lesson, student, x).values())
        adam.zero_grad()
        total.backward()
        adam.step()
        history.append(total.item())
    assert history[-1] < 0.7 * history[0]


@pytest.mark.usefixtures("no_card")
def test_classes_are_matched_by_name():
    student, teacher = build(tiny(nc=2)), build(tiny(nc=3), seed=1)
    teacher.names = {0: "B", 1: "other", 2: "a"}
    lesson = attached(Teacher("three", teacher, whole=True), student)
    assert (lesson.outputs.own, lesson.outputs.theirs) == ([0, 1], [2, 0])
    teacher.names = {0: "x", 1: "b", 2: "z"}
    assert attached(Teacher("three", teacher, whole=True), student).outputs.own == [1]


@pytest.mark.usefixtures("no_card")
@pytest.mark.parametrize(
    ("own", "theirs", "change", "reason"),
    [
        ("anchor-free", "anchor-free", {"names": {0: "x", 1: "y"}}, "knows none of the data set's classes by name"),
        ("classes", "classes", {"names": {0: "a", 1: "y"}}, "does not know 1 of the data set's classes"),
        ("anchor-free", "anchors", {}, "one head has anchors, the other has none"),
        ("classes", "one level", {}, "it is to detect, the model to classify"),
    ],
)
def test_outputs_that_cannot_teach_are_said(own, theirs, change, reason):
    student, teacher = build(HEADS[own]), build({**HEADS, "one level": ONE_LEVEL}[theirs], seed=1)
    teacher.names = change.get("names", teacher.names)
    lesson = attached(Teacher("x", teacher, whole=True), student)
    assert reason in lesson.why_not
    assert list(compare(lesson, student, pictures(64, 64))) == ["cwd_loss"]


def test_levels_that_only_one_side_has_are_refused():
    student = build(tiny(head=[[[1], 1, "Detect", ["nc"]]]))
    teacher = build(ONE_LEVEL)
    with pytest.raises(UserError, match=r"the teacher has maps at P3 .* and the model at P2 .*: there is no level"):
        Lesson(Teacher("x", teacher, whole=True), student, OPTIONS)


@pytest.mark.slow
def test_a_backbone_teaches_by_its_own_maps_of_normalized_pictures(tmp_path):
    backbone = create_backbone("timm", "resnet10t", out_strides=[8, 16, 32])
    torch.save({name.removeprefix("body."): t for name, t in backbone.state_dict().items()}, tmp_path / "r.pth")
    teacher = open_teacher("timm:resnet10t", str(tmp_path / "r.pth"), 3)
    student = create_model("yolov5n.yaml", nc=2)
    student.names, student.args = dict(enumerate(NAMES)), type("Args", (), {})()
    lesson = attached(teacher, student.float())
    assert lesson.features.strides == [8, 16, 32]
    card = lesson.card(student, lesson.asked.network)
    assert "maps of the backbone at P3 (stride 8), P4 (stride 16), P5 (stride 32) (3 through a 1x1 convolution)" in card
    assert "Its outputs teach nothing: its head is not trained" in card
    assert "each step computes about" in card
    x = pictures(64, 64, dtype=torch.float32)
    lesson.watches[1].start()
    lesson.asked(x)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in teacher.normalization)
    with torch.no_grad():
        wanted = backbone.eval()((x - mean) / std)
    for stride, got in lesson.watches[1].stop().items():
        torch.testing.assert_close(got, wanted[[8, 16, 32].index(stride)], rtol=1e-4, atol=1e-4)


def test_a_checkpoint_is_not_normalized_and_is_sent_whole_to_other_processes(tmp_path):
    model = build(tiny()).float()
    teacher = open_teacher(str(save(model, tmp_path / "t.pt")), None, 3)
    assert teacher.normalization is None
    again = Teacher.unpack(teacher.pack())
    assert again.digest() == teacher.digest()
    x = pictures(64, 64, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(Prepared(again, 6)(x)["scores"], model(x)[1]["scores"], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="takes pictures of 3 channels, the data has 1"):
        open_teacher(str(tmp_path / "t.pt"), None, 1)


# Imitation ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_poolformers_mixers_teach_riformers_by_name():
    teacher, student = (create_backbone(*names) for names in (("timm", "poolformer_s12"), ("RIFormer", "s12")))
    modules, blocks = pair_modules(teacher, student, "token_mixer", translation(teacher, student))
    assert (len(modules), len(blocks)) == (12, 12)
    assert modules[3] == ("body.stages_1.blocks.1.token_mixer", "network.2.1.token_mixer")
    assert blocks[3] == ("body.stages_1.blocks.1", "network.2.1")
    assert teacher.published_name(modules[3].teacher) == "stages.1.blocks.1.token_mixer"


@pytest.mark.usefixtures("no_card")
def test_modules_of_a_copy_have_nothing_to_imitate_and_steps_bring_others_nearer():
    student = build(tiny_backbone("RIFormer", "s12", RIFORMER))
    x = pictures(64, 64)
    same = attached(Teacher("copy", copy.deepcopy(student), whole=True), student, imitate="token_mixer")
    assert compare(same, student, x)["imit_loss"].item() == pytest.approx(0, abs=1e-12)
    teacher = Teacher("other", build(tiny_backbone("RIFormer", "s12", RIFORMER), seed=1), whole=True)
    lesson = attached(teacher, student, imitate="token_mixer")
    adam, history = torch.optim.Adam(student.parameters(), lr=0.02), []
    for _ in range(4):
        loss = compare(lesson, student, x)["imit_loss"]
        adam.zero_grad()
        loss.backward()
        adam.step()
        history.append(loss.item())
    assert history[-1] < 0.8 * history[0]


@pytest.mark.parametrize(
    ("word", "changes", "message"),
    [
        (
            "token_mixer",
            {"layers": [1, 1, 1, 1]},
            r"teacher has 4 modules token_mixer, the model 5, and network\.4\.1",
        ),
        ("token_mixer", {"embed_dims": [8, 8, 16, 24]}, r"gives maps of \(24, 2, 2\), .* of the model \(16, 2, 2\)"),
        ("attn", {}, "the backbone of the teacher has no module of that name"),
    ],
)
def test_modules_that_do_not_fit_are_refused_in_one_sentence(word, changes, message):
    student = create_model(tiny_backbone("RIFormer", "s12", RIFORMER))
    teacher = create_model(tiny_backbone("RIFormer", "s12", {**RIFORMER, **changes}))
    with pytest.raises(UserError, match=message):
        Imitation(teacher, student, word)


def test_rows_have_no_modules_to_imitate():
    with pytest.raises(UserError, match="--imitate is for list backbones, of which the teacher has none"):
        Imitation(create_model(tiny()), create_model(tiny_backbone("RIFormer", "s12", RIFORMER)), "token_mixer")


# Trainings ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def options(tmp_path):
    """Return the options of a small training that a wider network teaches."""
    wide = build(tiny(width_multiple=1.0), seed=1).float()
    return {
        "cfg": write(tmp_path, tiny(), "net.yaml"),
        "data": make_data(tmp_path, 4),
        "teacher": save(wide, tmp_path / "wide.pt"),
        "project": tmp_path / "runs",
        "epochs": 3,
        "imgsz": 64,
        "batch_size": 2,
        "device": "cpu",
        "noplots": True,
    }


def last(run):
    return read_checkpoint(run / "weights/last.pt")


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["wide.pt", "ema"])
def test_a_taught_run_that_is_resumed_ends_with_the_same_bits(teacher, options, monkeypatch):
    options |= {"teacher": options["teacher"] if teacher == "wide.pt" else teacher, "teacher_off": 1}
    whole = train.run(**options, name="whole")
    with stopped(monkeypatch, "on_train_batch_end", epoch=1):
        train.run(**options, name="stopped")
    again = train.run(resume=options["project"] / "stopped/weights/last.pt")
    first, second = last(whole), last(again)
    assert all(torch.equal(second["model"][name], tensor) for name, tensor in first["model"].items())
    adapters = first["teaching"]["adapters"]
    assert len(adapters) == (2 if teacher == "wide.pt" else 0)
    assert all(torch.equal(second["teaching"]["adapters"][name], tensor) for name, tensor in adapters.items())
    assert "teaching" not in read_checkpoint(whole / "weights/best.pt")
    assert first["model"].keys() == create_model(tiny()).state_dict().keys()
    with (whole / "results.csv").open() as f:
        rows = list(csv.DictReader(f))
    for name in ("cwd_loss", "kdbox_loss", "kdcls_loss"):
        taught = [float(row[f"train/{name}"]) for row in rows]
        assert f"val/{name}" not in rows[0]
        assert taught[1] > 0, name
        assert taught[2] == 0, name


@pytest.mark.slow
def test_another_teacher_is_refused_when_a_run_is_resumed(options, monkeypatch, tmp_path):
    with stopped(monkeypatch, "on_train_batch_end", epoch=1):
        train.run(**options, name="run")
    resume = options["project"] / "run/weights/last.pt"
    other = save(build(tiny(width_multiple=1.0), seed=2).float(), tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt, which is not the teacher of the run, .*wide\.pt"):
        train.run(resume=resume, teacher=other)
    with pytest.raises(UserError, match="--teacher-loss cannot be changed in a run that is resumed"):
        train.run(resume=resume, teacher_loss="pkd")
    moved = options["teacher"].rename(tmp_path / "moved.pt")
    assert last(train.run(resume=resume, teacher=moved))["epoch"] == 2


@pytest.mark.slow
def test_a_classifier_learns_from_a_classifier(tmp_path):
    folders = make_folders(tmp_path / "data", train=4, val=2)
    wide = build({**HEADS["classes"], "nc": 3, "width_multiple": 1.0}).float()
    wide.names = dict(enumerate(["blue", "green", "red"]))
    run = train.run(
        cfg=write(tmp_path, HEADS["classes"], "net.yaml"),
        data=folders,
        teacher=save(wide, tmp_path / "wide.pt"),
        project=tmp_path / "runs",
        epochs=1,
        imgsz=32,
        batch_size=4,
        device="cpu",
        noplots=True,
    )
    columns = (run / "results.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/kdcls_loss", "train/cwd_loss"} <= set(columns)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"teacher": "net.yaml"}, r"net\.yaml has no list backbone that reads the picture with trained weights"),
        ({"teacher": "timm:resnet10t"}, "downloaded only when you allow it: --download"),
        ({"teacher": "none.pt"}, "there is no weights file .*none.pt"),
        ({"teacher_loss": "pkd"}, "--teacher-loss is for a teacher: name one with --teacher"),
        ({"teacher": "ema", "teacher_weights": "x.pt"}, "leave out --teacher-weights"),
        ({"teacher": "wide.pt", "teacher_weights": "x.pt"}, "a checkpoint has its own"),
        ({"teacher": "wide.pt", "imitate": "token_mixer"}, "--imitate is for list backbones"),
    ],
)
def test_what_cannot_teach_is_refused_before_a_run_is_made(flags, message, options, tmp_path):
    del options["teacher"]
    if flags.get("teacher", "").endswith((".pt", ".yaml")):
        flags = {**flags, "teacher": tmp_path / flags["teacher"]}
    with pytest.raises(UserError, match=message):
        train.run(**options, **flags)
    assert not options["project"].exists()


def test_options_of_a_run_say_who_taught(options):
    args = train.make_parser().from_keywords(**options)
    assert yaml.safe_load(yaml.safe_dump(train.flag_options(args)))["teacher"] == str(options["teacher"].resolve())
