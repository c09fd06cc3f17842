"""A stream's outputs and its state, and what it says of bad ones."""

from __future__ import annotations

import copy
import pickle
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from i3dconvert import Recipe, inflate, stream
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import FramesError, StreamError
from i3dconvert.recipes import Rule
from i3dconvert.streaming.layers import Delay
from tests.streaming.test_stream import TEMPORAL, Branches, behind, difference, small, stepped


class Pair(NamedTuple):
    size: int
    score: Tensor
    maps: Tensor


class Typed(nn.Module):
    """Flags, indices and float32 values that wait for a branch that looks ahead further."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.a(x)
        y = self.b(x)
        picked = y.masked_fill(x > 0, 1).gather(1, x.argmax(1, keepdim=True))
        return picked, y.float() + x.float(), x > 0


def test_the_output_is_the_networks_own() -> None:
    class Named(Typed):
        def forward(self, x: Tensor) -> Pair:  # type: ignore[override]
            x = self.a(x)
            return Pair(x.shape[3], x.mean((2, 3)), self.b(x))

    network = small(Named(), TEMPORAL)
    assert difference(network, 2, 3) < 1e-12
    found, state = stepped(flow := stream(network), torch.randn(1, 3, 3, 16, 16, dtype=torch.float64))
    assert all(isinstance(one, Pair) and one.size == 16 for one in [*found, *flow.flush(state)])


def test_values_keep_their_types() -> None:
    network = small(Typed(), TEMPORAL)
    clip = torch.randn(1, 3, 6, 16, 16, dtype=torch.float64)
    found, _ = stepped(stream(network), clip)
    assert [one.dtype for one in found[-1]] == [one.dtype for one in network(clip)]
    assert difference(network, 2, 6) < 1e-6


def test_zero_taps_ask_for_nothing() -> None:
    flow = stream(inflate(Branches(), Recipe("r", (TEMPORAL,)), size=16))
    assert (flow.frames, flow.delay, flow.names) == (1, 0, ("clock",))
    state = flow.start(1, 16, 16)
    output, state = flow.step(torch.randn(1, 3, 1, 16, 16), state)
    assert output.shape == (1, 24, 1, 16, 16)
    assert flow.flush(state) == []


@pytest.mark.parametrize("window", [1, 3, 4])
def test_scores_are_the_mean_of_the_last_outputs(window: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    rules = (TEMPORAL, Rule("1", kernel=3, stride=2, padding=0))
    means, single = (small(copy.deepcopy(net), *rules, temporal_pool=how) for how in ("mean", "none"))
    clip = torch.randn(2, 3, 14, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        scores = single(clip)
    flow = stream(means, window)
    found, state = stepped(flow, clip)
    given = [*found[flow.delay :], *flow.flush(state)]
    assert len(given) == scores.shape[1]
    for count, value in enumerate(given, 1):
        expected = scores[:, max(count - window, 0) : count].mean(1)
        assert relative_error(expected, value) < 1e-12


def test_videos_of_one_batch_may_start_at_different_times() -> None:
    """As cameras that share a server do: each row of a state is a video's own."""
    network = small(Branches(), TEMPORAL, init="mean")
    flow = stream(network)
    clip = torch.randn(2, 3, 12, 16, 16, dtype=torch.float64)
    one, state = stepped(flow, clip[:1, :, :5])
    state = tuple(torch.cat(rows) for rows in zip(state, flow.start(1, 16, 16), strict=True))
    both, _ = stepped(flow, torch.cat([clip[:1, :, 5:], clip[1:, :, :7]]), state)
    first, second = (torch.cat(found, 2) for found in ([*one, *[b[:1] for b in both]], [b[1:] for b in both]))
    with torch.no_grad():
        whole = network(clip)
    late = flow.delay
    assert relative_error(whole[:1, :, : 12 - 2 * late], first[:, :, late : 12 - late]) < 1e-12
    assert relative_error(whole[1:, :, : 7 - 2 * late], second[:, :, late : 7 - late]) < 1e-12


def test_a_state_travels() -> None:
    """The module keeps nothing: a copy of it, and a copied state, go on where the first was."""
    network = small(Branches(), TEMPORAL)
    flow = stream(network)
    clip = torch.randn(1, 3, 9, 16, 16, dtype=torch.float64)
    found, _ = stepped(flow, clip)
    _, state = stepped(flow, clip[:, :, :4])
    other, carried = pickle.loads(pickle.dumps((flow, state)))
    assert [tensor.shape for tensor in carried] == [tensor.shape for tensor in flow.start(1, 16, 16)]
    stepped(flow, torch.randn(3, 3, 5, 16, 16, dtype=torch.float64))
    again, _ = stepped(other, clip[:, :, 4:], carried)
    assert all(torch.equal(a, b) for a, b in zip(found[4:], again, strict=True))


def test_a_wrong_delay_is_seen() -> None:
    network = small(Branches(), TEMPORAL)
    flow = stream(network)
    assert difference(network, 1, 8, flow) < 1e-12
    delay = next(module for module in flow.modules() if isinstance(module, Delay) and module.by > 1)
    delay.by -= 1
    flow._kept.clear()
    assert difference(network, 1, 8, flow) > 1e-3


def test_a_wrong_state_is_seen() -> None:
    network = small(Branches(), TEMPORAL)
    flow = stream(network)
    clip = torch.randn(1, 3, 9, 16, 16, dtype=torch.float64)
    found, _ = stepped(flow, clip)
    for place in range(len(flow.names)):
        _, state = stepped(flow, clip[:, :, :4])
        broken = tuple(t.clone().zero_() if at == place else t for at, t in enumerate(state))
        again, _ = stepped(flow, clip[:, :, 4:], broken)
        assert not all(torch.equal(a, b) for a, b in zip(found[4:], again, strict=True)), flow.names[place]


def test_bad_input() -> None:
    flow = stream(small(Branches(), TEMPORAL))
    other = stream(small(behind(nn.ReLU()), TEMPORAL))
    frames, state = torch.randn(1, 3, 1, 16, 16, dtype=torch.float64), flow.start(1, 16, 16)
    with pytest.raises(FramesError, match=r"a step takes frames \(N, 3, 1, H, W\), got \(1, 3, 2, 16, 16\)"):
        flow.step(frames.repeat(1, 1, 2, 1, 1), state)
    with pytest.raises(StreamError, match=r"the state is for another batch: .*start\(2, 16, 16\)"):
        flow.step(frames.repeat(2, 1, 1, 1, 1), state)
    with pytest.raises(StreamError, match="the state is for another size"):
        flow.step(frames, flow.start(1, 16, 18))
    with pytest.raises(StreamError, match="the state belongs to another network"):
        flow.step(frames, other.start(1, 16, 16))
    with pytest.raises(StreamError, match="start 0 videos"):
        flow.start(0, 16, 16)
    with pytest.raises(StreamError, match="window is 0"):
        stream(small(Branches(), TEMPORAL), 0)
    for beside, says in (
        (tuple(t.float() for t in state), r"of another type: clock is torch.float32, .* need torch.float64"),
        (tuple(t.to("meta") for t in state), "elsewhere: clock is on meta, .* need cpu"),
        ((None, *state[1:]), "a state is a tuple of tensors"),
    ):
        with pytest.raises(StreamError, match=says):
            flow.step(frames, beside)  # type: ignore[arg-type]
    for other_frames, says in (
        (frames.float(), "in torch.float64 on cpu, as the network's weights are, got torch.float32 on cpu"),
        (frames.numpy(), "a tensor of frames .*, got ndarray"),
        (frames[:0], r"got \(0, 3, 1, 16, 16\)"),
    ):
        with pytest.raises(FramesError, match=says):
            flow.step(other_frames, state)  # type: ignore[arg-type]
    with pytest.raises(StreamError, match=r"can't start 1\.5 videos"):
        flow.start(1.5, 16, 16)  # type: ignore[arg-type]
    with pytest.raises(StreamError, match="they have no window"):
        stream(small(Branches(), TEMPORAL), 3)
    _, later = flow.step(frames, state)
    with pytest.raises(StreamError, match="started at different times"):
        flow.flush(tuple(map(torch.cat, zip(state, later, strict=True))))  # type: ignore[arg-type]
    flow.flush(state)
    for over in (lambda: flow.step(frames, state), lambda: flow.flush(state)):
        with pytest.raises(StreamError, match="the state was flushed, so its video is over"):
            over()


def test_a_state_keeps_no_more_memory_than_its_tensors() -> None:
    flow = stream(small(Branches(), TEMPORAL))
    _, state = flow.step(torch.randn(2, 3, flow.frames, 16, 16).double(), flow.start(2, 16, 16))
    held = {id(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in state}
    assert sum(held.values()) == sum(tensor.nbytes for tensor in state)
