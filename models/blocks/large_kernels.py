"""Large depthwise kernels, beside which smaller ones train; one large kernel in deployment.

"Scaling Up Your Kernels to 31x31" (RepLKNet, https://arxiv.org/abs/2203.06717): a small kernel in the middle.
"UniRepLKNet" (https://arxiv.org/abs/2311.15599): small kernels, most of them dilated.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from ultralytics.nn.modules import Conv

from models.blocks.branches import BranchedConv, Part
from models.errors import UserError

DILATED = {  # side of the large kernel: side and dilation of each kernel beside it, as UniRepLKNet has them
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


class LargeKernel(BranchedConv):
    """A depthwise k x k convolution and smaller ones in parallel, each with BatchNorm: (B, c, H, W) to the same.

    Args:
        channels: of the map.
        k: side of the large kernel, odd.
        parts: side and dilation of each smaller one.
    """

    def __init__(self, channels: int, k: int, parts: Iterable[tuple[int, int]]) -> None:
        conv = nn.Conv2d(channels, channels, k, padding=k // 2, groups=channels, bias=False)
        super().__init__(conv, nn.BatchNorm2d(channels), (Part(conv, (side, side), (d, d)) for side, d in parts))


class RepLKBlock(nn.Module):
    """RepLKNet's block: [x +] 1x1, large kernel, 1x1, of a BatchNorm of x; (B, c1, H, W) to (B, c2, H, W).

    Args:
        c1: channels of the input.
        c2: channels of the output.
        k: side of the large kernel, odd.
        small: side of the one beside it, odd and smaller.
        shortcut: whether the input is added where it has as many channels.
        e: channels inside, as a part of `c2`.

    Raises:
        UserError: kernels that are even, or of which the small one is not smaller.
    """

    def __init__(self, c1: int, c2: int, k: int = 31, small: int = 5, shortcut: bool = True, e: float = 1.0) -> None:
        super().__init__()
        if k % 2 == 0 or small % 2 == 0 or small >= k:
            raise UserError(f"a RepLKBlock has an odd kernel and a smaller odd one in its middle, got {k} and {small}")
        hidden = int(c2 * e)
        self.norm = nn.BatchNorm2d(c1)
        self.cv1 = Conv(c1, hidden, 1)
        self.conv = LargeKernel(hidden, k, [(small, 1)])
        self.act: nn.Module = Conv.default_act
        self.cv2 = Conv(hidden, c2, 1, act=False)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.act(self.conv(self.cv1(self.norm(x)))))
        return x + y if self.add else y


class DilatedReparamBlock(nn.Module):
    """UniRepLKNet's depthwise large kernel with dilated ones beside it, activation: (B, c, H, W) to the same.

    Args:
        channels: of the map.
        k: side of the large kernel, one of those in DILATED.
        act: the activation.

    Raises:
        UserError: another `k`.
    """

    def __init__(self, channels: int, k: int, act: nn.Module) -> None:
        super().__init__()
        if k not in DILATED:
            sides = ", ".join(map(str, DILATED))
            raise UserError(f"a DilatedReparamBlock has a kernel of one of the sides {sides}, got {k}")
        self.conv = LargeKernel(channels, k, DILATED[k])
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))
