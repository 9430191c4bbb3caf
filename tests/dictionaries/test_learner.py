"""Is each kind's loss what it should be, with all its gradients, and does it come to rest where theory says?"""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from microtome.core.site import Site
from microtome.dictionaries.dead_units import auxiliary_loss
from microtome.dictionaries.layout import Layout
from microtome.dictionaries.learner import Learner
from microtome.dictionaries.preparation import geometric_median, prepare
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.selection import top_k

SITE = Site.module("values")
ROWS, D, UNITS = 64, 8, 20
PLAIN = {"centring": "no", "scaling": "no", "clip": None}


def draw(rows: int = ROWS, d: int = D, seed: int = 0) -> Tensor:
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(seed))


def learner(x: Tensor, **choices: object) -> Learner:
    recipe = Recipe.read({"width": UNITS, "l0": 3, "steps": 100, "rate": 3e-3, **choices})
    widths = ((x.shape[1],), (x.shape[1],))
    foot = prepare(x, widths[0], recipe.centring, recipe.scaling)
    return Learner(recipe, Layout.autoencoder(SITE), widths, (foot, foot), (x, x))


def shaken(one: Learner, bias: float = 0.0, seed: int = 1) -> Learner:
    """Away from where it begins, so that encoder and decoder differ and biases are not zero."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in one.parameters.values():
            parameter += 0.2 * torch.randn(parameter.shape, generator=source)
        one.parameters["bias"] += bias
    return one


def gradients(one: Learner, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(one.parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(one.parameters.items(), found, strict=True)
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 2e-6 * gradient.norm() + 1e-9, name


def dense_top_k(p: dict[str, Tensor], x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Codes and what they write, as anyone would write it down."""
    pre = (x - p["decoder_bias"]) @ p["encoder"].mT + p["bias"]
    kept = torch.zeros_like(pre).scatter(1, pre.topk(k).indices, 1.0)
    codes = pre.relu() * kept
    return codes, codes @ p["decoder"] + p["decoder_bias"]


def squared(difference: Tensor) -> Tensor:
    return difference.square().sum(-1).mean()


@pytest.mark.parametrize("bias", [0.0, -2.5])  # with the second, rows have fewer than k that are positive
@pytest.mark.parametrize("multi", [1, 4])
def test_top_k_and_multi_top_k_are_their_plain_forms(bias: float, multi: int) -> None:
    x = draw()
    one = shaken(learner(x, activation="topk", multi=multi, **PLAIN), bias)
    outcome = one.variant.run(one.scene(x, x))
    codes, written = dense_top_k(one.parameters, x, 3)
    assert bool((codes.count_nonzero(1) < 3).any()) == (bias < 0)
    expected = squared(x - written)
    if multi > 1:
        expected = expected + squared(x - dense_top_k(one.parameters, x, 3 * multi)[1]) / 8
    assert torch.allclose(outcome.loss, expected)
    assert_equal(gradients(one, outcome.loss), gradients(one, expected))


@pytest.mark.parametrize("bias", [0.0, -2.5])
def test_dead_units_learn_with_encoder_and_decoder_and_nobody_else_does(bias: float) -> None:
    x = draw()
    one = shaken(learner(x, **PLAIN), bias)
    p, dead = one.parameters, torch.arange(UNITS) % 3 == 0
    left = draw(seed=3)
    found = gradients(one, auxiliary_loss(one.scene(x, x), dead, left))
    pre = ((x - p["decoder_bias"]) @ p["encoder"].mT + p["bias"]).masked_fill(~dead, -torch.inf)
    top = pre.topk(D // 2)
    codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    expected = gradients(one, squared(codes @ p["decoder"] - left))
    assert_equal(found, expected)
    for name in ("encoder", "decoder", "bias"):
        assert not found[name][~dead].any()
    assert bool(found["encoder"][dead].abs().sum() > 0)


def test_twenty_steps_are_those_of_plain_autograd() -> None:
    x = draw(256)
    one = learner(x, activation="topk", decoder="unit")
    twin = {name: tensor.detach().clone().requires_grad_() for name, tensor in one.parameters.items()}
    adam = torch.optim.Adam(list(twin.values()))
    rates = []
    for step in range(20):
        batch = one.footing[0].apply(x)
        loss = squared(batch - dense_top_k(twin, batch, 3)[1])
        adam.zero_grad()
        loss.backward()
        gradient = twin["decoder"].grad
        assert gradient is not None
        with torch.no_grad():
            gradient -= twin["decoder"] * (gradient * twin["decoder"]).sum(-1, keepdim=True)
        torch.nn.utils.clip_grad_norm_(twin.values(), 1.0)
        adam.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 2)
        adam.step()
        with torch.no_grad():
            twin["decoder"].copy_(functional.normalize(twin["decoder"], dim=-1))
        taken = one.learn(x, x)
        rates.append(abs(taken.loss - float(loss.detach())) / float(loss.detach()))
    assert max(rates) < 1e-5
    norms = one.parameters["decoder"].norm(dim=-1)
    assert torch.allclose(norms, torch.ones(UNITS), atol=1e-6)


def test_matryoshka_prefixes_have_to_do_alone() -> None:
    x = draw()
    one = shaken(learner(x, activation="topk", prefixes=(5, 12, UNITS), **PLAIN))
    codes, _ = dense_top_k(one.parameters, x, 3)
    decoder, bias = one.parameters["decoder"], one.parameters["decoder_bias"]
    expected = sum(squared(x - codes[:, :end] @ decoder[:end] - bias) for end in (5, 12, UNITS)) / 3
    outcome = one.variant.run(one.scene(x, x))
    assert torch.allclose(outcome.loss, torch.as_tensor(expected))
    assert_equal(gradients(one, outcome.loss), gradients(one, torch.as_tensor(expected)))


@pytest.mark.parametrize("density", [1.0, 0.0])  # the whole matrix; entries alone
@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_penalised_kinds_are_their_plain_forms(kind: str, density: float) -> None:
    x = draw()
    choices = {"activation": kind, "l0": None, "coefficient": 0.7, "decoder": "free", "warm_up": 0.0}
    one = shaken(learner(x, **choices, **PLAIN))
    one.held["density"] = density
    p = one.parameters
    norms = p["decoder"].norm(dim=-1)
    pre = (x - p["decoder_bias"]) @ p["encoder"].mT + p["bias"]
    gate = pre.relu()
    if kind == "relu":
        expected = squared(x - gate @ p["decoder"] - p["decoder_bias"])
    else:
        magnitude = p["log_scale"].exp() * (pre - p["bias"]) + p["shift"]
        codes = magnitude.relu() * (pre > 0)
        expected = squared(x - codes @ p["decoder"] - p["decoder_bias"])
        expected = expected + squared(x - gate @ p["decoder"].detach() - p["decoder_bias"].detach())
    expected = expected + 0.7 * (gate * norms).sum(-1).mean()
    outcome = one.variant.run(one.scene(x, x))
    assert torch.allclose(outcome.loss, expected)
    assert_equal(gradients(one, outcome.loss), gradients(one, expected))


@pytest.mark.parametrize("density", [1.0, 0.0])
@pytest.mark.parametrize("choices", [{}, {"penalty": "lp", "power": 0.5}])
def test_each_prefix_pays_as_an_autoencoder_of_its_own(density: float, choices: dict[str, object]) -> None:
    """The loss is the mean over prefixes of the error and the penalty of the units in it."""
    x = draw()
    nested = {
        "activation": "relu",
        "l0": None,
        "coefficient": 0.7,
        "warm_up": 0.0,
        "prefixes": (5, 12, UNITS),
    }
    one = shaken(learner(x, **nested, **choices, **PLAIN))
    one.held["density"] = density
    p = one.parameters
    codes = ((x - p["decoder_bias"]) @ p["encoder"].mT + p["bias"]).relu()
    costs = codes if not choices else (codes + 1e-6).sqrt() - 1e-3
    expected = sum(
        squared(x - codes[:, :end] @ p["decoder"][:end] - p["decoder_bias"])
        + 0.7 * costs[:, :end].sum(-1).mean()
        for end in (5, 12, UNITS)
    )
    outcome = one.variant.run(one.scene(x, x))
    assert torch.allclose(outcome.loss, torch.as_tensor(expected / 3))
    assert_equal(gradients(one, outcome.loss), gradients(one, torch.as_tensor(expected / 3)))


def test_the_gate_does_not_teach_the_decoder() -> None:
    x = draw()
    one = shaken(learner(x, activation="gated", l0=None, coefficient=0.0, **PLAIN))
    outcome = one.variant.run(one.scene(x, x))
    whole, alone = gradients(one, outcome.loss), gradients(one, one.variant.run(one.scene(x, x)).error)
    assert torch.allclose(whole["decoder"], alone["decoder"], atol=1e-6)
    assert not torch.allclose(whole["bias"], alone["bias"], atol=1e-3)


def test_a_threshold_follows_the_slope_of_the_number_on() -> None:
    """In expectation, the estimated slope is the true one: d/dθ of how many are on, by a difference on many rows."""
    x = draw(20_000)
    one = learner(x, activation="jumprelu", l0=4, window=0.2, **PLAIN)
    scene = one.scene(x, x)
    one.variant.run(scene)
    pre = x @ one.parameters["encoder"].mT
    level = one.parameters["log_threshold"].detach()

    def on(shift: float) -> Tensor:
        return (pre > (level + shift).exp()).float().mean(0)

    true = (on(0.1) - on(-0.1)) / 0.2
    estimated = one.variant.slope  # type: ignore[attr-defined]
    assert float((estimated - true).norm() / true.norm()) < 0.05
    outcome = one.variant.run(one.scene(x[:500], x[:500]))
    outcome.loss.backward()
    one.variant.adjust(one.scene(x[:500], x[:500]))
    gradient = one.parameters["log_threshold"].grad
    assert gradient is not None
    assert abs(float(gradient.sum())) < 1e-4 * float(gradient.abs().sum())


def orthonormal(rows: int = 2000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """One of eight orthonormal features in each row, with a strength of 0.3 … 2; and which, how strongly."""
    source = torch.Generator().manual_seed(seed)
    strength = torch.rand(rows, generator=source) * 1.7 + 0.3
    which = torch.randint(D, (rows,), generator=source)
    coefficients = torch.zeros(rows, D)
    coefficients[torch.arange(rows), which] = strength
    basis = torch.linalg.qr(draw(D, D, seed=5)).Q
    return coefficients, basis


@pytest.mark.parametrize(
    ("choices", "taken"),
    [
        ({"activation": "relu", "l0": None, "coefficient": 0.4}, 0.2),
        ({"activation": "topk", "l0": 1}, 0.0),
        ({"activation": "batch_topk", "l0": 1}, 0.0),
        ({"activation": "jumprelu", "l0": 1}, 0.0),
        ({"activation": "gated", "l0": None, "coefficient": 0.4}, 0.0),
    ],
)
def test_with_the_true_directions_only_the_penalty_makes_units_undershoot(
    choices: dict[str, object], taken: float
) -> None:
    """ReLU with L1 comes to rest at max(0, x − λ/2), the bias at −λ/2; all others at slope 1."""
    coefficients, basis = orthonormal()
    x = coefficients @ basis
    settings = {
        "width": D,
        "tied": False,
        "rate": 3e-2,
        "decay": 0.5,
        "steps": 250,
        "dead_units": "no",
        "clip": None,
    }
    one = learner(x, **{**choices, **settings, "centring": "no", "scaling": "no"})
    with torch.no_grad():
        one.parameters["decoder"].copy_(basis)
        one.parameters["encoder"].copy_(0.8 * basis + 0.05 * draw(D, D, seed=9))
    one.parameters["decoder"].requires_grad_(False)
    one.parameters["decoder_bias"].requires_grad_(False)
    for _ in range(250):
        one.learn(x, x)
    codes = one.dictionary().encode(x)
    strong = coefficients > 0.5
    true, found = coefficients[strong], codes[strong]
    slope = float(((true - true.mean()) * (found - found.mean())).sum() / (true - true.mean()).square().sum())
    assert slope == pytest.approx(1.0, abs=0.01)
    assert float((true - found).mean()) == pytest.approx(taken, abs=0.01)
    if taken:
        assert torch.allclose(one.parameters["bias"].detach(), torch.full((D,), -taken), atol=0.01)


def test_an_annealed_power_keeps_the_sum_that_is_paid() -> None:
    x = draw()
    choices = {
        "activation": "relu",
        "l0": None,
        "coefficient": 0.7,
        "penalty": "lp",
        "power": 0.5,
        "anneal": True,
    }
    one = shaken(learner(x, **choices, **PLAIN))
    one.step = 50
    before = one.variant.run(one.scene(x, x))
    one.step = 75
    after = one.variant.run(one.scene(x, x))
    assert one.held["power"] == 0.75
    assert one.held["coefficient"] != 0.7
    assert torch.allclose(before.loss, after.loss, rtol=1e-5)


def test_resampling_starts_dead_units_anew_and_leaves_the_others() -> None:
    x = draw()
    choices = {"dead_units": "resample", "dead_after": 1000, "resamplings": 3, "steps": 100}
    one = learner(x, **choices, **PLAIN)
    for _ in range(25):
        one.learn(x, x)
    assert one.step == 25
    one.idle[:4] = 5000.0
    with torch.no_grad():
        one.parameters["bias"][:4] = -100.0
    before = copy.deepcopy({name: tensor.detach() for name, tensor in one.parameters.items()})
    one.learn(x, x)
    assert float(one.parameters["bias"][:4].detach().abs().max()) == 0
    assert torch.allclose(one.parameters["decoder"][:4].norm(dim=-1), torch.ones(4))
    assert not torch.allclose(one.parameters["decoder"][:4], before["decoder"][:4], atol=0.1)
    assert torch.allclose(one.parameters["decoder"][4:], before["decoder"][4:], atol=0.02)
    moments = one.adam.state[one.parameters["encoder"]]
    assert not moments["exp_avg"][:4].any()
    assert one.idle.max() < 1000


@pytest.mark.parametrize("scaling", ["rms", "whiten", "no"])
@pytest.mark.parametrize("centring", ["mean", "median", "no"])
@pytest.mark.parametrize("kind", ["topk", "jumprelu", "gated"])
def test_the_footing_goes_into_the_dictionary(kind: str, centring: str, scaling: str) -> None:
    """What the learner writes on its footing, brought back, is what the dictionary writes."""
    x = draw() @ draw(D, D, seed=4) + 3
    one = shaken(learner(x, activation=kind, centring=centring, scaling=scaling))
    scene = one.scene(x, x)
    outcome = one.variant.run(scene)
    foot = one.footing[1]
    expected = foot.back(scene.rebuilt(outcome.drive, outcome.codes)) + foot.centre
    found = one.dictionary()
    assert torch.allclose(found.reconstruct(x), expected, atol=2e-4)
    if scaling != "whiten":
        norms = found.directions().norm(dim=-1)
        assert torch.allclose(norms, one.parameters["decoder"].norm(dim=-1), atol=1e-5)
    assert torch.equal(
        found.encode(x).count_nonzero(1), found.encode_sparsely(x).row.bincount(minlength=ROWS)
    )


def test_footings_are_what_they_say() -> None:
    x = draw(500) @ draw(D, D, seed=4) + 3
    white = prepare(x, (D,), "mean", "whiten").apply(x)
    assert torch.allclose(white.mT @ white / len(x), torch.eye(D), atol=1e-3)
    two = prepare(x * torch.tensor([100.0] * 3 + [1.0] * 5), (3, 5), "mean", "rms").apply(
        x * torch.tensor([100.0] * 3 + [1.0] * 5)
    )
    assert float(two[:, :3].square().mean()) == pytest.approx(1, abs=1e-4)
    assert float(two[:, 3:].square().mean()) == pytest.approx(1, abs=1e-4)
    spoiled = torch.cat([x, 1e6 * torch.ones(50, D)]).double()
    assert float((geometric_median(spoiled) - x.mean(0)).norm()) < 3
    middle = geometric_median(x.double())
    away = x.double() - middle
    assert (
        float((away / away.norm(dim=-1, keepdim=True)).sum(0).norm()) < 1e-4
    )  # its distances add up to least


def test_top_k_is_chosen_by_what_is_subtracted_too() -> None:
    x = draw()
    one = shaken(learner(x, **PLAIN))
    found = top_k(*one.scene(x, x).product, 3)
    pre = (x - one.parameters["decoder_bias"]) @ one.parameters["encoder"].mT + one.parameters["bias"]
    assert torch.equal(found.entries.unit.view(ROWS, 3), pre.topk(3).indices.sort(-1).values)
