from __future__ import annotations

from pathlib import Path

import matplotlib
from PIL import Image

from experiments.common import style


def test_what_an_average_is_over() -> None:
    assert style.over(["A", "B"]) == "average over 2 networks: A, B"
    assert style.over(["A"]) == "A alone"


def test_panels_are_by_row_and_column(tmp_path: Path) -> None:
    figure, axes = style.panels(2, 3, (6, 4), same_y=True)
    assert [len(row) for row in axes] == [3, 3]
    axes[0][0].set_ylim(0, 7)
    assert axes[1][2].get_ylim() == (0, 7)
    style.save(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (900, 600)


def test_the_style_is_gone_behind_a_drawing() -> None:
    seen = []
    before = matplotlib.rcParams["axes.titlelocation"]
    style.styled(lambda: seen.append(matplotlib.rcParams["axes.titlelocation"]))()
    assert seen == ["left"] != [before]
    assert matplotlib.rcParams["axes.titlelocation"] == before


def test_a_markdown_table() -> None:
    assert style.markdown(["a", "b"], [["1", "2"], ["3", "4"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"
