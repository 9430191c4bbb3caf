"""What can go wrong, told in the user's own words: what was expected, what came, what to do.

Every error of Microtome is a `MicrotomeError`, which is a `ValueError`; the subclass says which door refused.
"""


class MicrotomeError(ValueError):
    """Base of all errors raised on purpose."""


class SiteError(MicrotomeError):
    """A site that cannot be parsed, or that this model does not have."""


class EditError(MicrotomeError):
    """An edit that does not fit the value it is applied to."""


class InputError(MicrotomeError):
    """Tokens, prompts or pairs that a model or a method cannot take."""


class NotFiniteError(MicrotomeError):
    """NaN or infinity where numbers were expected."""


class FamilyError(MicrotomeError):
    """An architecture without a map, or whose map fails the check against the untouched model."""


class StoreError(MicrotomeError):
    """A file or folder that is corrupt, foreign, or belongs to another model."""


class PluginError(MicrotomeError):
    """An entry point that does not keep its contract, or a name nobody registered."""


class TruthError(MicrotomeError):
    """A model that does not do what an answer key says of it, and so cannot serve as truth."""
