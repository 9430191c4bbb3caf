"""Does a dictionary keep what the model *does*? Training on the model's own outputs instead of on the values alone.

1. `TokenStream` runs the model on a batch of tokens, and brings the values at a site with the logits of that pass.
2. `ModelLoss` puts what a dictionary rebuilt in their place, runs the model on from there, and compares: the divergence
   KL(model's own ‖ with the dictionary) in nats a token, the error at later sites, and the error at the site itself.
   Errors are shares of the variance of a batch.
3. The gradient comes back through the model to what was rebuilt, and from there as ever. The model is not touched.

    stream = TokenStream(model, tokens, ["resid_post.2"], together=16)
    train(stream, recipes, target=ModelLoss(stream, later=["resid_post.3"]))

Braun, Taylor, Goldowsky-Dill and Sharkey (2024), Identifying functionally important features with end-to-end sparse
dictionary learning. It misleads as a reconstruction: other values may do the same to the outputs, by other ways; errors
at later sites (`later`) keep the ways alike.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from microtome.bases.basis import parted
from microtome.core.draws import generator
from microtome.core.edits import Set
from microtome.core.errors import InputError
from microtome.core.provenance import hash_tensors, model_hash
from microtome.core.site import Site, as_site
from microtome.dictionaries.scene import OwnUnits
from microtome.models.model import Model


class TokenStream:
    """Values of a model on rows of tokens, a random choice of rows at a time, with what the model made of them.

    tokens `[row, column]`, none of them padding; together: rows in a batch, which has together × columns values. Of the
    batch last given, `tokens`, `logits` and `values` (by site) are kept. also: sites to keep beside. begins: each row
    begins with a token that is no part of the text; values there stay as they are, and are not counted.

    Raises `InputError` for fewer rows than a batch takes.
    """

    def __init__(
        self,
        model: Model,
        tokens: Int[Tensor, "row column"],
        sites: Sequence[Site | str],
        together: int = 16,
        seed: int = 0,
        epochs: int | None = None,
        also: Sequence[Site | str] = (),
        begins: bool = False,
    ) -> None:
        if not 1 <= together <= len(tokens):
            raise InputError(
                f"batches of {together} rows cannot be taken from {len(tokens)}; give more rows of tokens"
            )
        self.model, self.sites = model, tuple(map(as_site, sites))
        self.also = tuple(map(as_site, also))
        self.places = tuple(range(int(begins), tokens.shape[1]))
        self.batch_rows, self.step = together * len(self.places), 0
        self._all, self._together, self._seed = tokens, together, seed
        self._in_epoch = len(tokens) // together
        self.n_steps = None if epochs is None else epochs * self._in_epoch
        first = self._run(tokens[:1])
        self.widths = tuple(first[site].flatten(2).shape[-1] for site in self.sites)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "model": model_hash(self.model.module.state_dict()),
            "tokens": hash_tensors({"tokens": self._all}),
            "sites": [str(site) for site in self.sites],
            "together": self._together,
            "seed": self._seed,
            "begins": len(self.places) < self._all.shape[1],
        }

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Float[Tensor, "row d"]:
        if self.step == self.n_steps:
            raise StopIteration
        epoch, place = divmod(self.step, self._in_epoch)
        order = torch.randperm(len(self._all), generator=generator(self._seed, epoch))
        self.step += 1
        values = self._run(self._all[order[place * self._together : (place + 1) * self._together]])
        return torch.cat([values[site].flatten(2).flatten(0, 1) for site in self.sites], -1)

    def seek(self, step: int) -> None:
        """Let the next batch be this one."""
        self.step = step

    def _run(self, tokens: Int[Tensor, "row column"]) -> dict[Site, Tensor]:
        wanted = tuple(dict.fromkeys((*self.sites, *self.also)))
        run = self.model.run(tokens.to(self.model.device), wanted, logits=True)
        assert run.logits is not None
        first = self.places[0]
        self.tokens, self.logits = tokens, run.logits[:, first:]
        self.values = {site: value[:, first:] for site, value in run.values.items()}
        return self.values


class ModelLoss(OwnUnits):
    """A loss for `train`: what the model does with what was rebuilt, on the batch that the stream gave last.

    writes: where to put it, by default the stream's sites. later: sites whose values are to stay what they were.
    divergence, downstream, local: weights of the KL, of the errors at later sites (their mean), and at the site itself.
    """

    def __init__(
        self,
        stream: TokenStream,
        writes: Sequence[Site | str] = (),
        later: Sequence[Site | str] = (),
        divergence: float = 1.0,
        downstream: float = 1.0,
        local: float = 0.0,
    ) -> None:
        self.stream = stream
        self.writes = tuple(map(as_site, writes)) or stream.sites
        self.later = tuple(map(as_site, later))
        known = {*stream.sites, *stream.also}
        if missing := [str(site) for site in (*self.writes, *self.later) if site not in known]:
            raise InputError(
                f"the stream does not keep {', '.join(missing)}; name them in TokenStream(also=…)"
            )
        self.divergence, self.downstream, self.local = divergence, downstream, local

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "writes": [str(site) for site in self.writes],
            "later": [str(site) for site in self.later],
            "weights": [self.divergence, self.downstream, self.local],
            "stream": self.stream.identity,
        }

    def loss(self, rebuilt: Float[Tensor, "row d"], wanted: Float[Tensor, "row d"]) -> Float[Tensor, ""]:
        """Of rows in the order of the stream's batch. The model's weights gather no gradients."""
        leaf = rebuilt.detach().requires_grad_(rebuilt.requires_grad)
        with torch.set_grad_enabled(rebuilt.requires_grad):
            total = self._compared(leaf, wanted)
        if not rebuilt.requires_grad:
            return total
        (slope,) = torch.autograd.grad(total, leaf)
        # Worth the loss, with its slope in what was rebuilt.
        return total.detach() + ((rebuilt - rebuilt.detach()) * slope).sum()

    def _compared(self, rebuilt: Float[Tensor, "row d"], wanted: Float[Tensor, "row d"]) -> Float[Tensor, ""]:
        stream = self.stream
        shapes = [stream.values[site].shape for site in self.writes]
        parts = parted(rebuilt, [shape[2:].numel() for shape in shapes])
        edits = [
            Set(site.at(*stream.places), value=part.reshape(shape))
            for site, part, shape in zip(self.writes, parts, shapes, strict=True)
        ]
        run = stream.model.run(stream.tokens.to(rebuilt.device), self.later, edits, logits=True)
        assert run.logits is not None
        first = stream.places[0]
        total = self.divergence * divergence(stream.logits, run.logits[:, first:])
        if self.later:
            wrong = [
                unexplained(run[site][:, first:].flatten(2), stream.values[site].flatten(2))
                for site in self.later
            ]
            total = total + self.downstream * torch.stack(wrong).mean()
        return total + self.local * unexplained(rebuilt, wanted) if self.local else total


def divergence(
    own: Float[Tensor, "row position token"], other: Float[Tensor, "row position token"]
) -> Float[Tensor, ""]:
    """KL(own ‖ other) in nats, averaged over tokens."""
    each = functional.kl_div(other.log_softmax(-1), own.log_softmax(-1), reduction="none", log_target=True)
    return each.sum(-1).mean()


def unexplained(found: Float[Tensor, "*rows d"], wanted: Float[Tensor, "*rows d"]) -> Float[Tensor, ""]:
    """The squared error as a share of the squared distance of what is wanted from its mean."""
    middle = wanted.flatten(0, -2).mean(0)
    return (found - wanted).square().sum() / (wanted - middle).square().sum()
