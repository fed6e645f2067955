"""The pictures of number formats are what the command draws, from the package's own tables."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from docs.pictures.draw import HERE, LAYOUTS, PICTURES, values


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_what_the_command_draws(name: str) -> None:
    assert (HERE / name).read_text() == PICTURES[name](), "make pictures draws it anew"


@pytest.mark.parametrize("name", PICTURES)
def test_picture_has_a_title_and_nothing_from_elsewhere(name: str) -> None:
    picture = ElementTree.fromstring((HERE / name).read_text())
    assert picture.findtext("{http://www.w3.org/2000/svg}title")
    assert not any("href" in key for element in picture.iter() for key in element.attrib)


@pytest.mark.parametrize(
    ("form", "count", "largest"), [("INT4", 16, 7.0), ("FP4 E2M1", 15, 6.0), ("FP8 E4M3", 253, 448.0)]
)
def test_page_says_of_a_format_what_its_codes_are(form: str, count: int, largest: float) -> None:
    points = values()[form]
    assert (len(points), points[-1]) == (count, largest)


@pytest.mark.parametrize(("form", "bits"), [("BF16", 16), ("FP8 E4M3", 8), ("FP4 E2M1", 4), ("INT4", 4)])
def test_fields_of_a_format_fill_it(form: str, bits: int) -> None:
    assert sum(field[1] for field in LAYOUTS[form]) == bits
