"""The model, in place: one verb to read and edit any value of the user's own module, which stays the user's.

    model = microtome.load("fruitfly")
    run = model.run("When Mary and John went", read=["resid_post.3@-1", "pattern.2"], edit=[Zero("z.1.h0")])

A pass stops at the last value asked for; logits are computed only where they are asked for; hooks exist only inside
a call. Nothing but reading and editing is a method here: analysis lives in methods.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from microtome.core.edits import Edit
from microtome.core.edits import check as check_edits
from microtome.core.errors import FamilyError, InputError, SiteError
from microtome.core.logits import LogitSelection, Metric
from microtome.core.site import PARTS, Site, as_site
from microtome.core.weight import Weight
from microtome.models import finite, generation, select, unembedding, weights
from microtome.models.anatomy import Anatomy
from microtome.models.batch import Batch
from microtome.models.inputs import Inputs, Tokens, prepare
from microtome.models.interception import INSIDE_ATTENTION, Interception, Stop
from microtome.models.places import place
from microtome.models.run import Run


class Model:
    """A module in memory, its map, and its tokenizer. Make one with `microtome.load`."""

    def __init__(
        self, module: nn.Module, anatomies: dict[str, Anatomy], tokenizer: Any = None, name: str = ""
    ) -> None:
        self.module = module
        self.anatomies = anatomies
        self.tokenizer = tokenizer
        self.name = name or type(module).__name__

    def __repr__(self) -> str:
        if not self.anatomies:
            return f"Model({self.name}: {type(self.module).__name__}, sites are module paths)"
        s = self.sizes
        return (
            f"Model({self.name}: {self.anatomy.family.name}, {s['n_layers']} layers, {s['n_heads']} heads, "
            f"d_model {s['d_model']}, vocabulary {s['d_vocab']})"
        )

    @property
    def anatomy(self) -> Anatomy:
        """The decoder (or only) stack. Raises `FamilyError` for a module addressed by paths only."""
        if "" not in self.anatomies:
            raise FamilyError(
                f"{self.name} has no map of parts: it is addressed by module paths (path:NAME) only"
            )
        return self.anatomies[""]

    @property
    def sizes(self) -> Mapping[str, int]:
        """n_layers, n_heads, n_kv_heads, d_model, d_head, d_mlp, d_vocab, n_positions."""
        return self.anatomy.sizes

    @property
    def n_layers(self) -> int:
        return self.sizes["n_layers"]

    @property
    def n_heads(self) -> int:
        return self.sizes["n_heads"]

    @property
    def device(self) -> torch.device:
        """Where inputs go: of a model that Accelerate spreads over devices, where its first layer runs."""
        hook = getattr(self.module, "_hf_hook", None)
        placed = getattr(hook, "execution_device", None)
        if placed is not None:
            return torch.device(placed)
        return next((p.device for p in self.module.parameters() if not p.is_meta), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @cached_property
    def accepts(self) -> frozenset[str]:
        """Names of the arguments that the module's forward takes."""
        return frozenset(inspect.signature(self.module.forward).parameters)

    def sites(self) -> list[Site]:
        """Every whole site that this model has, in the order of a pass."""
        found = []
        for stack, anatomy in self.anatomies.items():
            for name, part in PARTS.items():
                for layer in range(len(anatomy.blocks)) if part.layered else (None,):
                    site = Site(name, layer, stack=stack)
                    if self.has(site):
                        found.append(site)
        return sorted(found, key=lambda site: (site.stack != "encoder", site.depth))

    def has(self, site: Site | str) -> bool:
        """Whether this model has the site (heads and units not looked at)."""
        site = as_site(site).whole
        try:
            anatomy = self.anatomies[site.stack]
            if site.part in INSIDE_ATTENTION:
                return site.layer is not None and 0 <= site.layer < len(anatomy.blocks)
            if site.part == "logits":
                return anatomy.role("head") is not None and not site.stack
            place(anatomy, site)
        except (KeyError, SiteError):
            return False
        return True

    def weight(self, address: Weight | str) -> Tensor:
        """A parameter by address, as a view of the model's own tensor; shapes in `microtome.core.weight`."""
        return weights.weight(self.anatomy, Weight.parse(address) if isinstance(address, str) else address)

    def unembed(
        self, resid: Float[Tensor, "*batch d_model"], tokens: Sequence[int] | None = None
    ) -> Float[Tensor, "*batch token"]:
        """Logits of a residual stream by the model's own head: final norm, unembedding, caps and scales."""
        return unembedding.unembed(self.anatomy, resid, tokens)

    def inputs(self, tokens: Tokens, mask: Int[Tensor, "row column"] | None = None) -> Inputs:
        """What `run` will feed the module: ids, padding mask, and the geometry of the batch."""
        return prepare(self, tokens, mask)

    def run(
        self,
        tokens: Tokens,
        read: Sequence[Site | str] = (),
        edit: Sequence[Edit] = (),
        *,
        logits: bool | LogitSelection | None = None,
        metric: Metric | None = None,
        mask: Int[Tensor, "row column"] | None = None,
        check_finite: bool = True,
    ) -> Run:
        """Run the model, reading and editing on the way.

        tokens: text, texts, ids `[row, column]`, or the module's own keyword inputs.
        read: sites; `grad:SITE` is the gradient of the sum of `metric` there.
        edit: applied in order; a read at an edited site sees the edited value.
        logits: all (`True`), none (`False`), or a selection. By default all, unless reads or a metric are asked for.
        mask: 1 for real tokens, 0 for padding, left or right.
        check_finite: raise `NotFiniteError` rather than return NaN or infinity.

        Raises `SiteError`, `EditError`, `InputError`, `NotFiniteError`; the module is left as it was in every case.
        """
        sites = [as_site(site) for site in read]
        check_edits(edit)
        self._check_request(sites, metric, logits)
        inputs = self.inputs(tokens, mask)
        needs = None if metric is None else metric.needs
        if logits is None:
            logits = not sites and metric is None
        wanted = needs if needs is not None and not logits else logits
        trains = any(e.trains for e in edit)
        differentiates = any(site.gradient for site in sites)
        with torch.enable_grad() if trains or differentiates else torch.no_grad():
            seen, found = self._pass(inputs, sites, edit, wanted)
            scores = None
            if metric is not None and needs is not None:
                assert found is not None
                scores = metric(self._select(found, needs, inputs.batch) if logits else found)
                seen.gradients(scores, keep_graph=trains)
        values = seen.values
        if differentiates and not trains:
            values = {site: value.detach() for site, value in values.items()}
            found, scores = (None if kept is None else kept.detach() for kept in (found, scores))
        if check_finite:
            finite.check_finite(values, found)
        return Run(values, found if logits else None, scores)

    def _pass(
        self, inputs: Inputs, sites: Sequence[Site], edits: Sequence[Edit], wanted: bool | LogitSelection
    ) -> tuple[Interception, Tensor | None]:
        """One pass of the module; logits as wanted."""
        last = self._last_stream(sites, edits) if isinstance(wanted, LogitSelection) else None
        reads = [*sites, last] if last is not None and last not in sites else list(sites)
        stop = not wanted or last is not None
        with Interception(self.anatomies, self.module, reads, edits, stop=stop) as seen:
            seen.batch, seen.encoder_batch = inputs.batch, inputs.encoder_batch
            output = None
            with suppress(Stop):
                output = self.call(inputs)
            seen.check_reached()
        if not wanted:
            return seen, None
        if last is None:
            logits = logits_of(self, output)
            return seen, self._select(logits, wanted, inputs.batch) if isinstance(
                wanted, LogitSelection
            ) else logits
        assert isinstance(wanted, LogitSelection)
        resid = seen.values[last] if last in sites else seen.values.pop(last)
        if wanted.positions is not None:
            resid = select.read(replace(last, positions=wanted.positions), resid, inputs.batch)
        tokens = None if wanted.tokens is None else unembedding.ids_of(wanted, resid.device)
        return seen, unembedding.unembed(self.anatomy, resid, tokens)

    def generate(
        self,
        tokens: Tokens,
        new_tokens: int,
        edit: Sequence[Edit] = (),
        *,
        temperature: float = 0.0,
        seed: int = 0,
        mask: Int[Tensor, "row column"] | None = None,
    ) -> Int[Tensor, "row grown"]:
        """The prompts' ids, each followed by `new_tokens` more; see `microtome.models.generation`."""
        return generation.generate(
            self, tokens, new_tokens, edit, temperature=temperature, seed=seed, mask=mask
        )

    def call(self, inputs: Inputs) -> Any:
        """The module's own forward."""
        if "" in inputs.kwargs:
            return self.module(inputs.kwargs[""])
        return self.module(**inputs.kwargs)

    def _last_stream(self, sites: Sequence[Site], edits: Sequence[Edit]) -> Site | None:
        """Where a pass may stop if only some logits are wanted; `None` if something asked for lies beyond."""
        if "" not in self.anatomies or self.anatomy.role("head") is None:
            return None
        beyond = {"final_norm_scale", "logits", "path"}
        if any(site.part in beyond for site in (*sites, *(e.site for e in edits))):
            return None
        return Site("resid_post", self.n_layers - 1)

    def _select(self, logits: Tensor, wanted: LogitSelection, batch: Batch) -> Tensor:
        if wanted.positions is not None:
            logits = select.read(Site("logits", positions=wanted.positions), logits, batch)
        return unembedding.select_logits(logits, wanted)

    def _check_request(
        self, sites: Sequence[Site], metric: Metric | None, logits: bool | LogitSelection | None
    ) -> None:
        if metric is not None and isinstance(logits, LogitSelection):
            raise InputError("a metric chooses its own logits; beside it, ask for all (logits=True) or none")
        if any(site.gradient for site in sites) and metric is None:
            raise InputError(
                "a gradient is of something: give run(..., metric=...), for example a LogitDifference"
            )
        if any(module.training and _drops_out(module) for module in self.module.modules()):
            raise InputError(
                f"{self.name} is in training mode with dropout, so every pass would differ; call module.eval() first"
            )


def logits_of(model: Model, output: Any) -> Tensor:
    """The logits among what a module returned."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise InputError(
            f"{model.name} ({type(model.module).__name__}) returns no logits; load it with its head, or ask for "
            "reads only"
        )
    return found


def _drops_out(module: nn.Module) -> bool:
    """Whether a module in training mode would drop something: a dropout, or an attention that drops its weights."""
    rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
    return isinstance(rate, float) and rate > 0
