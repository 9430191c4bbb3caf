"""Load a model and prove that its map is true: a hub name, a folder, the bundled model, or a module in memory.

1. A folder or hub name is read by Transformers (safetensors only, no remote code); a module is taken as it is.
2. The map is found by the architecture's name, or by inspection of an unknown decoder.
3. The short check runs: logits equal the untouched model's, and the identities of the map hold.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from microtome.core.errors import FamilyError, InputError, NotFiniteError, StoreError
from microtome.models import bundled
from microtome.models.anatomy import Anatomy
from microtome.models.check import check_map
from microtome.models.families import family_of
from microtome.models.family import Family
from microtome.models.inspection import inspect_family
from microtome.models.model import Model


def load(
    model: str | Path | nn.Module,
    *,
    tokenizer: Any = None,
    family: Family | Literal["auto"] | None = "auto",
    dtype: torch.dtype | Literal["auto"] = "auto",
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    check: bool = True,
) -> Model:
    """A `Model` around the user's own module, which is left as it is.

    model: `"fruitfly"` (bundled), a folder, a hub name, or a module in memory.
    tokenizer: a tokenizer, or a name or folder to load one from; by default the model's own, if it has one.
    family: a map for an architecture that has none here; `None` to address modules by path only.
    check: compare with the untouched model on a few tokens (three short passes).

    Raises `StoreError` for files that cannot be read, `FamilyError` for an architecture without a true map,
    `NotFiniteError` for weights that hold NaN or infinity.
    """
    if isinstance(model, nn.Module):
        module, name = (
            model,
            getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__,
        )
    else:
        source = str(bundled.path(str(model))) if str(model) in bundled.names() else str(model)
        module, name = _from_files(source, dtype, device_map, revision), Path(str(model)).name
        if tokenizer is None:
            tokenizer = _tokenizer(source, revision)
    if isinstance(tokenizer, (str, Path)):
        named, tokenizer = str(tokenizer), _tokenizer(str(tokenizer), None)
        if tokenizer is None:
            raise StoreError(
                f"no tokenizer could be loaded from {named}; give a folder or hub name that has one"
            )
    _check_weights(module)
    found = Model(module, _anatomies(module, family), tokenizer, name)
    if check and found.anatomies:
        check_map(found)
    return found


def _anatomies(module: nn.Module, family: Family | Literal["auto"] | None) -> dict[str, Anatomy]:
    if family is None:
        return {}
    if isinstance(family, Family):
        return {"": Anatomy(module, family)}
    config = getattr(module, "config", None)
    families = family_of(config) if config is not None else {}
    if not families and config is not None and hasattr(module, "get_input_embeddings"):
        families = {"": inspect_family(module)}
    return {stack: Anatomy(module, found, stack) for stack, found in families.items()}


def _from_files(
    source: str,
    dtype: torch.dtype | Literal["auto"],
    device_map: str | dict[str, Any] | None,
    revision: str | None,
) -> nn.Module:
    import transformers
    from transformers.utils import logging

    from microtome.models import transformer  # noqa: F401  (makes our own architecture known to Transformers)

    folder = Path(source).expanduser()
    source = str(folder) if source.startswith("~") else source
    meant_as_folder = folder.is_absolute() or source.startswith((".", "~"))
    if meant_as_folder and not folder.is_dir():
        raise StoreError(
            f"{source} is not a folder; give a folder with config.json and model.safetensors, or a hub name"
        )
    options = {"revision": revision, "trust_remote_code": False}
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        names = getattr(config, "architectures", None) or []
        cls = getattr(transformers, names[0], None) if names else None
        cls = cls or transformers.AutoModelForCausalLM
        module, report = cls.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            device_map=device_map,
            use_safetensors=True,
            revision=revision,
            output_loading_info=True,
        )
    except Exception as error:
        raise StoreError(
            f"{source} could not be loaded: {type(error).__name__}: {error}. Expected a folder with config.json and "
            "safetensors weights (fetch an interrupted or damaged download again), or a hub name that is within reach"
        ) from error
    finally:
        if shows_bars:
            logging.enable_progress_bar()
    if missing := sorted(report["missing_keys"]):
        raise StoreError(
            f"{source} lacks {len(missing)} of the weights of {cls.__name__} (first {missing[0]}), which "
            "would be random. Give a complete checkpoint, or load the module yourself and hand it in"
        )
    assert isinstance(module, nn.Module)
    return module.eval()


def _tokenizer(source: str, revision: str | None) -> Any:
    import transformers

    try:
        found = transformers.AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception:
        return None
    # Where there are no files, Transformers makes one that knows its special tokens alone.
    return None if set(found.get_vocab().values()) <= set(found.all_special_ids) else found


def _check_weights(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            continue
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter.detach().sum())):
            bad = int((~torch.isfinite(parameter.detach())).sum())
            if bad:
                raise NotFiniteError(
                    f"weight {name} holds {bad} NaN or infinite values of {parameter.numel()}; the file is damaged or "
                    "training diverged: load another checkpoint"
                )


__all__ = ["FamilyError", "InputError", "load"]
