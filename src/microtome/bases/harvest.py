"""What does a model compute on a whole corpus? One pass over its rows for all sites asked for, value by value.

1. Rows of the corpus are taken some at a time, always the same ones together, so that a pass can be made again alone
   and gives the same numbers.
2. A pass reads all sites at once and stops at the last layer needed.
3. What is kept are the columns that hold a token of the corpus: rows of numbers, each with that token's number.

`grad:SITE` is the gradient of the corpus's next-token loss there (or of a metric of yours), a read like any other.
Of an encoder–decoder, which reads two texts, the sites of the encoder are harvested, whose text the corpus is.
Everything that keeps values stands on this: folders of values (`harvest_values`), unit stores (`harvest_units`),
streams for training (`streams`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from microtome.core.errors import InputError, SiteError
from microtome.core.logits import Metric
from microtome.core.provenance import model_hash
from microtome.core.site import Site, as_site
from microtome.data.corpus_rows import NO_TOKEN, CorpusRows, RowBatch
from microtome.data.metrics import next_tokens
from microtome.data.next_token_loss import NextTokenLoss
from microtome.models.model import Model

CorpusMetric = Callable[[RowBatch], Metric]
"""The scalar of gradients, for rows of a corpus."""


def next_token_loss(rows: RowBatch) -> NextTokenLoss:
    """What language models are trained on."""
    return NextTokenLoss(next_tokens(rows.ids, rows.mask))


@dataclass(frozen=True)
class Pass:
    """What one pass gave. number: which pass. token: the corpus's number of each row of values, ascending where the
    rows are in order. values: `[token, d]` by site as asked for.
    """

    number: int
    token: Int[Tensor, " token"]
    values: dict[Site, Float[Tensor, "token d"]]


@dataclass(frozen=True, eq=False)
class Harvest:
    """Which sites of which model on which rows; nothing is run before `passes` is asked.

    together: how many rows a pass takes. dtype: of the values kept, by default the model's own. metric: what gradients
    are of. Raises `SiteError` for sites without positions or with chosen ones, and for those of a decoder beside an
    encoder; `InputError` for tokens and row lengths that the model cannot read, and for gradients of the next-token
    loss where a model sees the next token.
    """

    model: Model
    rows: CorpusRows
    sites: tuple[Site, ...]
    together: int = 16
    dtype: torch.dtype | None = None
    metric: CorpusMetric = next_token_loss

    @classmethod
    def of(cls, model: Model, rows: CorpusRows, sites: Sequence[Site | str], **settings: Any) -> "Harvest":
        """The same, with sites as they are written."""
        return cls(model, rows, tuple(map(as_site, sites)), **settings)

    def __post_init__(self) -> None:
        if not self.sites or len(set(self.sites)) != len(self.sites):
            raise SiteError(
                f"name at least one site, and each once; got {' '.join(map(str, self.sites)) or 'none'}"
            )
        for site in self.sites:
            if site.positions is not None:
                raise SiteError(
                    f"{site} chooses positions; a harvest keeps every token of the corpus: drop the @"
                )
            if site.part != "path" and site.axes[1:2] != ("position",):
                raise SiteError(f"{site} has no row of numbers a token (its axes: {', '.join(site.axes)})")
        if self.together < 1:
            raise InputError(f"a pass takes at least one row; got together={self.together}")
        if not len(self.rows):
            raise InputError("there are no rows to read; give a corpus with text in it")
        if self.model.anatomies:
            self._check_fit()

    def _check_fit(self) -> None:
        sizes = self.model.sizes
        if self.rows.corpus.vocabulary > sizes["d_vocab"]:
            raise InputError(
                f"the corpus has a vocabulary of {self.rows.corpus.vocabulary} tokens, {self.model.name} knows "
                f"{sizes['d_vocab']}; tokenize the text for this model"
            )
        gradients = any(site.gradient for site in self.sites)
        if self._two_texts and (gradients or any(site.stack != "encoder" for site in self.sites)):
            raise SiteError(
                f"{self.model.name} is an encoder–decoder, and a corpus is the text of its encoder alone: harvest "
                "sites such as encoder/resid_post.0, without gradients"
            )
        if gradients and self.metric is next_token_loss and not self.model.anatomy.family.causal:
            raise InputError(
                f"{self.model.name} sees the token that comes next, so the next-token loss says nothing of it; give a "
                "metric of your own"
            )
        if sizes["n_positions"] and self.rows.columns > sizes["n_positions"]:
            raise InputError(
                f"rows of {self.rows.columns} columns are longer than the {sizes['n_positions']} positions of "
                f"{self.model.name}; give fewer columns"
            )

    @property
    def _two_texts(self) -> bool:
        return "encoder" in self.model.anatomies

    @property
    def n_passes(self) -> int:
        return -(-len(self.rows) // self.together)

    def tokens_before(self) -> NDArray[np.int64]:
        """How many tokens all passes before each one keep; the last entry counts all."""
        starts = np.arange(0, len(self.rows), self.together)
        return np.concatenate([[0], np.cumsum(np.add.reduceat(self.rows.lengths, starts))])

    def on(self, order: NDArray[np.int64]) -> "Harvest":
        """The same of other rows, or in another order."""
        return replace(self, rows=replace(self.rows, order=order))

    def passes(self, first: int = 0) -> Iterator[Pass]:
        """All passes from a given one on."""
        for number in range(first, self.n_passes):
            yield self.one(number)

    def values(self, first: int = 0) -> Iterator[Float[Tensor, "token d"]]:
        """Values of each pass, the sites side by side in their order."""
        for one in self.passes(first):
            yield torch.cat([one.values[site] for site in self.sites], 1)

    def one(self, number: int) -> Pass:
        """A single pass. Raises as `Model.run` does."""
        start = number * self.together
        rows = self.rows.batch(np.arange(start, min(start + self.together, len(self.rows))))
        metric = self.metric(rows) if any(site.gradient for site in self.sites) else None
        if self._two_texts:
            padding = {} if rows.mask is None else {"attention_mask": rows.mask}
            # The pass ends before the decoder reads its text.
            texts = {"input_ids": rows.ids, "decoder_input_ids": rows.ids[:, :1]} | padding
            run = self.model.run(texts, read=self.sites)
        else:
            run = self.model.run(rows.ids, read=self.sites, mask=rows.mask, metric=metric)
        kept = (rows.token != NO_TOKEN).to(self.model.device)
        values = {site: self._kept(site, run[site], kept) for site in self.sites}
        return Pass(number, rows.token[rows.token != NO_TOKEN], values)

    def _kept(self, site: Site, value: Tensor, kept: Tensor) -> Float[Tensor, "token d"]:
        if value.dim() < 3 or value.shape[:2] != kept.shape:
            raise SiteError(
                f"{site} gave {list(value.shape)} for {list(kept.shape)} tokens; a harvest needs a row of numbers each"
            )
        flat = value.flatten(2)
        found = flat.flatten(0, 1) if bool(kept.all()) else flat[kept.to(flat.device)]
        return found if self.dtype is None else found.to(self.dtype)

    def identity(self) -> dict[str, Any]:
        """What was harvested, in plain JSON: equal identities give equal values."""
        return {
            "model": self.model.name,
            "model_hash": model_hash(self.model.module.state_dict()),
            "rows": self.rows.identity,
            "sites": list(map(str, self.sites)),
            "together": self.together,
            "dtype": str(self.dtype or self.model.dtype).removeprefix("torch."),
            "metric": getattr(self.metric, "__name__", type(self.metric).__name__),
        }
