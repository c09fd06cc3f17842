"""A recipe says, layer by layer, what happens along time: an ordered list of rules, of which the last match wins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any, Literal

from i3dconvert.errors import RecipeError
from i3dconvert.names import near
from i3dconvert.recipes.temporal import Attending, Geometry, Padding, Size, Temporal

KINDS = ("pointwise", "spatial", "transposed", "max_pool", "avg_pool", "upsample", "attention", "norm", "global")
"""Kinds of layer: 1×1 convolutions, other convolutions, transposed ones, the two poolings with a window,
interpolations. Rules match these only by their kind: attentions, norms over space (GroupNorm, InstanceNorm), and means
and maxima over all of space (global pools, squeeze and excitation)."""
SPANNING = ("attention", "norm", "global")


@dataclass(frozen=True)
class Rule:
    """A rule for layers along time. `layer` is a glob over names (or several, `a|b`), `kind` one of `KINDS` or `*`.

    A number left out keeps that of an earlier rule, or 1; a padding left out aligns output frames with input frames;
    `"same"` pads like TensorFlow's 'SAME' for lengths that are multiples of the stride.
    """

    layer: str = "*"
    kind: str = "*"
    kernel: Size | None = None
    stride: Size | None = None
    padding: Padding | None = None
    dilation: Size | None = None
    span: int | Literal["all"] | None = None
    """Frames that a query attends to, in groups of consecutive ones; 1 is its own frame only. For norms: `1` normalises
    each frame by itself, `all` (the default) over all frames of the clip. For global pools: `1` (the default) pools
    each frame's space, `all` pools over time too."""
    shift: int | None = None
    """Frames by which groups of attention are shifted, cyclically, as windows are in space; frames that were not
    neighbours before do not attend to each other (Video Swin, arXiv:2106.13230, section 3.2)."""
    relative: bool | None = None
    """Whether grouped attention repeats its table of relative positions for each of the 2·span − 1 distances in time
    (Video Swin, section 3.3)."""
    divided: bool | None = None
    """Whether a query attends to the same place in all frames, in an attention that is added before the one within a
    frame (TimeSformer, arXiv:2102.05095, section 3)."""

    def matches(self, name: str, kind: str) -> bool:
        """Return whether the rule applies to the layer called `name`."""
        of_kind = self.kind == kind if kind in SPANNING else fnmatchcase(kind, self.kind)
        return of_kind and any(fnmatchcase(name, glob) for glob in self.layer.split("|"))

    def __str__(self) -> str:
        fields = {name: getattr(self, name) for name in (*_SIZES, *_ATTENDING)}
        numbers = ", ".join(f"{name} {value}" for name, value in fields.items() if value is not None)
        kind = "" if self.kind == "*" else f" ({self.kind})"
        return f"{self.layer}{kind}: {numbers}"


@dataclass(frozen=True)
class InsertedPool:
    """A temporal pool `kernel`×1×1 that is added after the module named `after`."""

    after: str
    kernel: int
    stride: int
    padding: int = 0
    kind: str = "max_pool"
    """`max_pool` or `avg_pool`."""


@dataclass(frozen=True)
class Recipe:
    """An ordered list of rules and of added temporal pools; `source` is the paper or page that it comes from."""

    name: str
    rules: tuple[Rule, ...] = ()
    pools: tuple[InsertedPool, ...] = ()
    source: str = ""

    def with_rules(self, rules: Sequence[Rule]) -> Recipe:
        """Return the recipe with `rules` appended."""
        return replace(self, name=f"{self.name}+", rules=(*self.rules, *rules)) if rules else self

    def temporal(self, name: str, geometry: Geometry, ceil: bool = False) -> Temporal:
        """Return the temporal kernel, stride, padding and dilation of the layer called `name`."""
        chosen: dict[str, Padding | None] = {"kernel": 1, "stride": 1, "padding": None, "dilation": 1}
        for rule in self.rules:
            if rule.matches(name, geometry.kind):
                if rule.kernel is not None:
                    chosen["padding"] = None
                for field in chosen:
                    value: Padding | None = getattr(rule, field)
                    chosen[field] = chosen[field] if value is None else value

        def number(field: str) -> int:
            value = chosen[field]
            return int(getattr(geometry, field)) if value == "spatial" else int(value or 0)

        if chosen["padding"] == "spatial" and geometry.padding is None:
            chosen["padding"] = None
        kernel, stride, dilation = number("kernel"), number("stride"), number("dilation")
        if geometry.kind in ("transposed", "upsample"):
            return self._enlarging(geometry, kernel, stride, dilation, chosen["padding"])
        if chosen["padding"] is None:
            total = dilation * (kernel - 1)
            before, after = dilation * (kernel // 2), total - dilation * (kernel // 2)
        elif chosen["padding"] == "same":
            total = max(dilation * (kernel - 1) + 1 - stride, 0)
            before, after = total // 2, total - total // 2
        else:
            beyond = geometry.outside if chosen["padding"] == "spatial" else (0, 0)
            before, after = (number("padding") + frames for frames in beyond)
            if any(beyond) and before + after == dilation * (kernel - 1):
                before, after = dilation * (kernel // 2), before + after - dilation * (kernel // 2)
        return Temporal(kernel, stride, before, after, dilation, ceil)

    def attending(self, name: str) -> Attending | None:
        """Return the frames to which the attention called `name` attends; None if only to its own."""
        chosen: dict[str, Any] = {"span": 1, "shift": 0, "relative": False, "divided": False}
        for rule in self.rules:
            if rule.matches(name, "attention"):
                chosen |= {field: value for field in _ATTENDING if (value := getattr(rule, field)) is not None}
        if chosen["span"] == 1:
            return None
        group = 0 if chosen["span"] == "all" else chosen["span"]
        if chosen["shift"] and chosen["shift"] >= group:
            raise RecipeError(
                f"recipe {self.name!r} does not fit {name}: a shift of {chosen['shift']} frames needs larger groups "
                f"than {chosen['span']}"
            )
        if chosen["relative"] and not group:
            raise RecipeError(
                f"recipe {self.name!r} does not fit {name}: relative positions in time need a span in frames"
            )
        if chosen["divided"] and group:
            raise RecipeError(f"recipe {self.name!r} does not fit {name}: divided attention needs the span 'all'")
        return Attending(group=group, shift=chosen["shift"], relative=chosen["relative"], divided=chosen["divided"])

    def normalises_frames(self, name: str) -> bool:
        """Return whether the norm called `name` normalises each frame by itself."""
        return self._spans(name, "norm")[-1:] == [1]

    def pools_all_frames(self, name: str) -> bool:
        """Return whether the global pool called `name` pools all frames of the clip."""
        return self._spans(name, "global")[-1:] == ["all"]

    def _spans(self, name: str, kind: str) -> list[Any]:
        return [rule.span for rule in self.rules if rule.matches(name, kind)]

    def _enlarging(
        self, geometry: Geometry, kernel: int, stride: int, dilation: int, padding: Padding | None
    ) -> Temporal:
        """Return the rule of a layer that makes time longer; without a padding of its own, exactly by the stride."""
        if geometry.kind == "upsample":
            return Temporal(stride, stride, transposed=True)
        kernel = max(kernel, stride)
        before, after = (kernel - stride + 1) // 2, (kernel - stride) % 2
        if padding not in (None, "same"):
            before = geometry.padding or 0 if padding == "spatial" else int(padding)
            after = geometry.output_padding if padding == "spatial" else 0
        return Temporal(kernel, stride, before, after, dilation, transposed=True)

    def check_matches(self, layers: Iterable[tuple[str, str]], modules: Iterable[str]) -> None:
        """Raise `RecipeError` for a rule that matches none of `layers` (name, kind), or a pool after no module.

        Rules for all layers (`*`) of a kind may match none.
        """
        layers, modules = list(layers), set(modules)
        for rule in self.rules:
            if rule.layer != "*" and not any(rule.matches(name, kind) for name, kind in layers):
                some = ", ".join(name for name, _ in layers[:3]) or "none"
                parts = {part for name, _ in layers for part in accumulate(name.split("."), "{}.{}".format)}
                close = near(rule.layer.rstrip(".*"), sorted(parts))
                changed = self.name.endswith("+")
                what = "the rule" if changed else f"recipe {self.name!r} does not fit: its rule"
                advice = close.strip() if changed or not self.source else "--recipe uniform fits every network"
                raise RecipeError(
                    f"{what} {str(rule)!r} matches no layer (layers: {some}, …){advice and f'; {advice}'}"
                )
        for pool in self.pools:
            if pool.after not in modules:
                raise RecipeError(f"recipe {self.name!r} does not fit: no module {pool.after!r} to put a pool after")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for TOML and JSON; `from_dict` is the inverse."""
        document: dict[str, Any] = {"name": self.name}
        if self.source:
            document["source"] = self.source
        document["rule"] = [
            {
                key: value
                for key, value in vars(rule).items()
                if value is not None and not (key == "kind" and value == "*")
            }
            for rule in self.rules
        ]
        if self.pools:
            document["pool"] = [
                {key: value for key, value in vars(pool).items() if (key, value) != ("kind", "max_pool")}
                for pool in self.pools
            ]
        return document

    @classmethod
    def from_dict(cls, document: Any, where: str = "recipe") -> Recipe:
        """Read the data written by `to_dict` and check every key and type; `where` names the document in errors."""
        table = _table(document, where, {"name": str, "source": str, "rule": list, "pool": list})
        for key in ("rule", "pool"):
            if len(table.get(key, [])) > _MOST:
                raise RecipeError(f"{where} has {len(table[key]):,} {key}s; at most {_MOST:,} are allowed")
        rules = [_table(r, f"{where}: rule {i}", _RULE) for i, r in enumerate(table.get("rule", []), 1)]
        pools = [_table(p, f"{where}: pool {i}", _POOL) for i, p in enumerate(table.get("pool", []), 1)]
        for i, pool in enumerate(pools, 1):
            if missing := {"after", "kernel", "stride"} - set(pool):
                raise RecipeError(f"{where}: pool {i} lacks {', '.join(sorted(missing))}")
            if pool.get("kind", "max_pool") not in ("max_pool", "avg_pool"):
                raise RecipeError(f"{where}: pool {i} is of kind {pool['kind']!r}; known: max_pool, avg_pool")
        return cls(
            name=table.get("name", "custom"),
            rules=tuple(Rule(**rule) for rule in rules),
            pools=tuple(InsertedPool(**pool) for pool in pools),
            source=table.get("source", ""),
        )


_SIZES = ("kernel", "stride", "padding", "dilation")
_ATTENDING = ("span", "shift", "relative", "divided")
_RULE = {"layer": str, "kind": str, **dict.fromkeys((*_SIZES, "span", "shift"), int), "relative": bool, "divided": bool}
_POOL: dict[str, type] = {"after": str, "kernel": int, "stride": int, "padding": int, "kind": str}
_LARGEST = 1024
_MOST = 4096
"""The most rules, pools, and characters in a name or a glob."""


def _table(value: Any, where: str, schema: dict[str, type]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: expected a table, got {value!r}")
    for key, item in value.items():
        if key not in schema:
            raise RecipeError(f"{where}: unknown key {key!r} (known: {', '.join(schema)})")
        if schema is _RULE and key in _SIZES and (item == "spatial" or (key, item) == ("padding", "same")):
            continue
        if (key, item) == ("span", "all"):
            continue
        if isinstance(item, str) and len(item) > _MOST:
            raise RecipeError(f"{where}: {key} has {len(item):,} characters; at most {_MOST:,} are allowed")
        if not isinstance(item, schema[key]) or isinstance(item, bool) != (schema[key] is bool):
            raise RecipeError(f"{where}: {key} must be {schema[key].__name__}, got {item!r}")
        smallest = 0 if key in ("padding", "shift") else 1
        if isinstance(item, int) and schema[key] is int and not smallest <= item <= _LARGEST:
            raise RecipeError(f"{where}: {key} must lie between {smallest} and {_LARGEST}, got {item}")
        if key == "kind" and not any(fnmatchcase(kind, str(item)) for kind in KINDS):
            raise RecipeError(f"{where}: unknown kind {item!r} (known: {', '.join(KINDS)})")
    if (
        value.get("kind") in ("norm", "global")
        and set(value) - {"layer", "kind"} == {"span"}
        and value["span"] in (1, "all")
    ):
        return value
    attends = any(field in value for field in _ATTENDING)
    if attends != (value.get("kind") == "attention") or (attends and any(size in value for size in _SIZES)):
        raise RecipeError(
            f"{where}: span, shift, relative and divided belong in rules of kind 'attention' (without a kernel); "
            "rules of kind 'norm' and 'global' have the span 1 or 'all'"
        )
    return value


def parse_rule(text: str) -> Rule:
    """Parse a rule of `--temporal`: `GLOB=KERNEL[/STRIDE]`, or for attention `GLOB=all`, `GLOB=divided` or
    `GLOB=span:SPAN[/SHIFT]`."""
    glob, _, numbers = text.rpartition("=")
    kernel, slash, stride = numbers.partition("/")
    try:
        if numbers == "divided":
            rule = Rule(layer=glob, kind="attention", span="all", divided=True)
        elif numbers == "all" or numbers.startswith("span:"):
            frames, slash, shift = numbers.removeprefix("span:").partition("/")
            span: int | Literal["all"] = "all" if frames == "all" else int(frames)
            rule = Rule(layer=glob, kind="attention", span=span, shift=int(shift) if slash else None)
        else:
            rule = Rule(layer=glob, kernel=int(kernel), stride=int(stride) if slash else None)
    except ValueError:
        rule = Rule(layer="")
    if not rule.layer:
        raise RecipeError(
            f"{text!r} is not GLOB=KERNEL[/STRIDE], such as 'layer4.*=1' or 'conv1=5/2', nor GLOB=all, GLOB=span:4 or "
            "GLOB=divided"
        )
    _table({key: value for key, value in vars(rule).items() if value is not None}, repr(text), _RULE)
    return rule
