"""How figures look: their size, fonts, formats, and what of the runs is seen in them."""

import pytest

from results.interval_figure import IntervalRow, draw_intervals

# intervals


def test_intervals_and_what_they_are_made_of():
    rows = [IntervalRow("a", 2.0, 1.0, 4.0, [0.5, 3.0]), IntervalRow("b", -1.0, -2.0, 0.0)]
    [ax] = draw_intervals(rows, "points").axes
    drawn = [line.get_xdata() for line in ax.get_lines()]
    assert [list(x) for x in drawn] == [[0, 0], [0.5, 3], [1, 4], [2], [-2, 0], [-1]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.yaxis_inverted()  # the first is on top
    assert ax.get_xlabel() == "points"
    [ax] = draw_intervals(rows[1:], "rank", zero=None, width=3.25).axes
    assert [list(line.get_xdata()) for line in ax.get_lines()] == [[-2, 0], [-1]]
    assert ax.figure.get_figwidth() == 3.25
    with pytest.raises(ValueError, match="no rows"):
        draw_intervals([], "points")
