"""The bundled model is there, is an ordinary folder, and has the behaviours that its card claims."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerBase

from microtome.core.errors import InputError
from microtome.models import bundled
from microtome.testbeds.stories.behaviours import Report, measure
from microtome.testbeds.stories.grammar import VOCABULARY
from microtome.testbeds.stories.tokenizer import build

MEGABYTE = 2**20
REQUIRED = {"induction": 0.95, "indirect_object": 0.95, "agreement": 0.99, "fact": 0.95}


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return AutoModelForCausalLM.from_pretrained(bundled.path()).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(bundled.path())


@pytest.fixture(scope="module")
def report(model: GPT2LMHeadModel) -> Report:
    """On stories that neither the training nor its log has seen."""
    return measure(model, seed=1, count=200)


@pytest.mark.parametrize(("behaviour", "required"), REQUIRED.items())
def test_the_model_has_the_behaviour(report: Report, behaviour: str, required: float) -> None:
    assert report.behaviours[behaviour].score >= required
    assert report.behaviours[behaviour].count >= 100


def test_an_untrained_model_has_none_of_them(model: GPT2LMHeadModel) -> None:
    torch.manual_seed(0)
    untrained = measure(GPT2LMHeadModel(model.config), seed=1, count=100)
    assert untrained.loss > 5
    assert all(untrained.behaviours[name].score < 0.7 for name in REQUIRED)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("When Mary and John went to the park, John gave a ball to", "Mary"),
        ("When Mary and John went to the park, Mary gave a ball to", "John"),
        ("The Eiffel Tower is in the city of", "Paris"),
        ("The Colosseum is in the city of", "Rome"),
        ("The dogs near the tree", "are"),
        ("The war lasted from the year 1732 to the year", "17"),
        ("Mary was happy because", "she"),
        ("John was happy because", "he"),
    ],
)
def test_it_continues_ordinary_text(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str
) -> None:
    ids = torch.tensor([tokenizer(prompt).input_ids])
    with torch.inference_mode():
        logits = model(ids).logits[0, -1]
    verbs = [tokenizer(verb, add_special_tokens=False).input_ids[0] for verb in ("is", "are")]
    chosen = verbs[int(logits[verbs].argmax())] if answer == "are" else int(logits.argmax())
    assert tokenizer.decode([chosen]).strip() == answer


def test_its_log_agrees_with_what_is_measured(report: Report) -> None:
    log = json.loads((bundled.path() / "training.json").read_text())
    assert report.loss == pytest.approx(log["held_out"]["loss"], abs=0.1)
    for name, required in REQUIRED.items():
        assert log["held_out"]["behaviours"][name]["score"] >= required


def test_it_is_small_and_holds_no_pickle() -> None:
    folder = bundled.path()
    assert (folder / "model.safetensors").stat().st_size <= 8 * MEGABYTE
    assert sum(file.stat().st_size for file in bundled.checkpoints().values()) <= 20 * MEGABYTE
    kinds = {file.suffix for file in folder.rglob("*") if file.is_file()}
    assert kinds <= {".json", ".safetensors", ".md"}


def test_its_tokenizer_is_the_one_that_the_stories_build(tokenizer: PreTrainedTokenizerBase) -> None:
    assert json.loads(tokenizer.backend_tokenizer.to_str()) == json.loads(build().backend_tokenizer.to_str())
    assert len(tokenizer) == len(VOCABULARY)


def test_the_last_checkpoint_is_the_model_in_half_precision(model: GPT2LMHeadModel) -> None:
    files = bundled.checkpoints()
    assert 10 <= len(files) <= 14
    assert list(files) == sorted(files)
    last = load_file(files[max(files)])
    for name, parameter in model.named_parameters():
        assert torch.equal(last[name], parameter.half()), name


def test_it_learns_from_checkpoint_to_checkpoint(model: GPT2LMHeadModel) -> None:
    files = bundled.checkpoints()
    other = GPT2LMHeadModel(model.config).eval()
    losses = []
    for step in (min(files), list(files)[len(files) // 2], max(files)):
        other.load_state_dict(load_file(files[step]), strict=False)
        losses.append(measure(other, seed=1, count=100).loss)
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1] + 1


def test_it_is_found_by_name_without_torch() -> None:
    assert isinstance(bundled.path("fruitfly"), Path)
    assert "fruitfly" in bundled.names()
    with pytest.raises(InputError, match="one of fruitfly; got 'zebrafish'"):
        bundled.path("zebrafish")
    program = "import sys; from microtome.models import bundled as b; b.checkpoints(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_twin_twice_as_wide_is_no_better_by_more_than_a_twentieth_of_a_nat() -> None:
    """Of what the card says: the model is not held back by its width."""
    log = json.loads((bundled.path() / "training.json").read_text())
    assert log["twin"]["width"] == 2 * log["settings"]["width"]
    assert log["twin"]["difference"] == pytest.approx(log["held_out"]["loss"] - log["twin"]["loss"])
    assert log["twin"]["difference"] <= 0.05
