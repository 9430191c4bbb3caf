"""A site is its string: any site prints to one and is read back equal; what no model can have is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.core.errors import SiteError
from microtome.core.site import PARTS, Site, as_site

NUMBERS = st.none() | st.lists(st.integers(-50, 50), min_size=1, max_size=4, unique=True).map(tuple)
NAMES = st.text(
    st.characters(exclude_categories=("Z", "C"), exclude_characters="@:."), min_size=1, max_size=8
)


@st.composite
def sites(draw: st.DrawFn) -> Site:
    gradient, positions = draw(st.booleans()), draw(NUMBERS)
    if draw(st.booleans()):
        path = ".".join(draw(st.lists(NAMES, max_size=4)))
        side = draw(st.sampled_from(("in", "out")))
        return Site("path", path=path, side=side, units=draw(NUMBERS), positions=positions, gradient=gradient)
    name = draw(st.sampled_from(sorted(PARTS)))
    part = PARTS[name]
    return Site(
        name,
        draw(st.integers(0, 99)) if part.layered else None,
        draw(NUMBERS) if {"head", "kv_head"} & set(part.axes) else None,
        draw(NUMBERS) if part.axes[-1] != "one" else None,
        positions,
        gradient,
        draw(st.sampled_from(("", "encoder"))),
    )


@given(sites())
def test_every_site_is_read_back_from_its_string(site: Site) -> None:
    assert Site.parse(str(site)) == site
    assert hash(Site.parse(str(site))) == hash(site)
    assert as_site(str(site)) == as_site(site) == site
    assert site.whole.is_whole
    assert not site.whole.gradient
    assert site.grad.gradient
    assert site.grad.whole == site.whole


@given(st.text())
def test_any_text_is_a_site_or_refused(text: str) -> None:
    try:
        site = Site.parse(text)
    except SiteError:
        return
    assert Site.parse(str(site)) == site


def test_the_strings_of_the_documentation() -> None:
    assert Site.parse("z.5.h1,7") == Site("z", 5, heads=(1, 7))
    assert Site.parse("mlp_post.0.u12@-1") == Site("mlp_post", 0, units=(12,), positions=(-1,))
    assert Site.parse("grad:resid_pre.2") == Site("resid_pre", 2, gradient=True)
    assert Site.parse("path:features.3:in") == Site.module("features.3", "in")
    assert Site.parse("path:blocks.u3") == Site.module("blocks.u3")
    assert Site.parse("path:blocks:out.u3") == Site.module("blocks").unit(3)
    assert Site.parse("encoder/resid_post.1").stack == "encoder"
    assert Site("z", 1).head(2).at(-1) == Site.parse("z.1.h2@-1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nothing.0", "not a part"),
        ("z", "belongs to a layer: write z.0"),
        ("embed.0", "belongs to no layer: write embed"),
        ("resid_pre.0.h1", "has no heads"),
        ("attn_norm_scale.0.u1", "has no units"),
        ("z.0.h1,1", "name each once"),
        ("z.-1", "is not a site"),
        ("z.0.h", "is not a site"),
        ("z.0@", "is not a site"),
        ("decoder/z.0", "is not a site"),
        ("", "is not a site"),
    ],
)
def test_what_is_no_site_says_what_to_write(text: str, says: str) -> None:
    with pytest.raises(SiteError, match=says):
        Site.parse(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Site("z", -1),
        lambda: Site("z", 0, heads=()),
        lambda: Site("z", 0, positions=()),
        lambda: Site("z", 0, stack="decoder"),
        lambda: Site("z", 0, side="in"),
        lambda: Site("z", 0, path="a.b"),
        lambda: Site("path", 0, path="a"),
        lambda: Site("path", heads=(1,), path="a"),
        lambda: Site("path", path="a@b"),
        lambda: Site("path", path="a b"),
        lambda: Site("path", path="a", side="middle"),
    ],
)
def test_a_site_that_could_not_be_printed_cannot_be_made(make: object) -> None:
    assert callable(make)
    with pytest.raises(SiteError):
        make()


def test_sites_sort_in_the_order_of_a_pass() -> None:
    texts = (
        "embed resid_pre.0 q.0 pattern.0 z.0 attn_out.0 resid_mid.0 mlp_out.0 resid_post.0 resid_pre.1 logits"
    )
    sites = [Site.parse(text) for text in texts.split()]
    shuffled = sorted(sites, key=str)
    assert shuffled != sites
    assert sorted(shuffled, key=lambda site: site.depth) == sites
