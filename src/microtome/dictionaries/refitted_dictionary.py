"""What would a dictionary give back if its units, once chosen, did not have to be guessed? Its choice, solved for.

1. The dictionary says which units are on.
2. Their strengths are fitted to the value itself by least squares, row by row, nothing below zero.

This gives back what a penalty took even where directions overlap. A scale and a shift of each unit (`shrinkage`) cannot
do that: a unit that overlap drives where its feature is not gets the same scale and shift as where it is, and what is
best for both is too little for one. Solved for, what such a unit has no use for becomes zero.

It costs a small system a row, and gradients do not pass. Misleads where a feature's unit is off: others that are on
take over its part.
"""

from jaxtyping import Float
from torch import Tensor

from microtome.bases.additive import AdditiveBasis
from microtome.core.errors import InputError
from microtome.dictionaries.coders.inference_time import refit
from microtome.dictionaries.dictionary import Dictionary


class RefittedDictionary(AdditiveBasis):
    """The directions of a dictionary, and how much of each of those that it chose. Gradients do not pass its encoding.

    Raises `InputError` for one that writes elsewhere than it reads, or past its units.
    """

    def __init__(self, dictionary: Dictionary) -> None:
        if not dictionary.in_place or dictionary.skip is not None:
            raise InputError(
                f"{dictionary.name} writes elsewhere than it reads, or past its units, so what its units should write "
                "is not there to be solved for"
            )
        directions = dictionary.directions().detach()
        super().__init__(
            dictionary.reads, dictionary.read_widths, directions, dictionary.decoder_bias.detach()
        )
        self.name, self.dictionary = f"{dictionary.name}, refitted", dictionary

    def encode(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows unit"]:
        """Strengths of the units that the dictionary has on; zero for those that are of no use."""
        rows = values.detach().reshape(-1, values.shape[-1])
        codes = self.dictionary.encode(rows).detach()
        signed = bool((codes < 0).any())
        return refit(rows - self.centre, self.decoder, codes, not signed).reshape(*values.shape[:-1], -1)
