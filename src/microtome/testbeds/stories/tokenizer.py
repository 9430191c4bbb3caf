"""How is a story read and written back by the bundled model's tokenizer?

1. Text is cut into words, pairs of digits, and single signs; white space only separates.
2. Each piece is one token of `grammar.VOCABULARY`, or ``<unk>``; ``<bos>`` is put in front.
3. Decoding joins the pieces with spaces, except before closing punctuation, inside brackets and quotations, and
   between pairs of digits, so "1732" comes back as it was.

Encoding what was decoded gives the same tokens back (``<unk>`` and ``<pad>`` aside).
"""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from microtome.testbeds.stories.grammar import BOS, SPECIALS, TOKEN_ID, TOKEN_PATTERN

_GLUED = (
    r" (?=[.,:;?!)](?:[^\w]|\z))",
    r"(?<=\() ",
    r"(?<=[a-z]) (?=\()",
    r"(?<=\d\d) (?=\d\d)",
    r"(?<=\d:) (?=\d\d)",
    r'(?<=, ") ',
    r'(?<=[.!?]) (?=")',
)
"""Spaces that are not written."""


def build() -> PreTrainedTokenizerFast:
    """The tokenizer as Hugging Face knows it; save it with ``save_pretrained``."""
    pad, bos, unk = SPECIALS
    inner = Tokenizer(models.WordLevel(dict(TOKEN_ID), unk_token=unk))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN_PATTERN), behavior="removed", invert=True)
    inner.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, BOS)]
    )
    joined = [decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*joined, *(decoders.Replace(Regex(space), "") for space in _GLUED)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=bos,
        pad_token=pad,
        unk_token=unk,
        clean_up_tokenization_spaces=False,
    )
