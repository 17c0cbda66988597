import numpy as np
import pytest

from keras_tracin import plots

LONGITUDE = np.array([-122.0, -121.0, -120.0, -119.0])
LATITUDE = np.array([37.0, 36.0, 35.0, 34.0])


def clouds(figure):
    """Of each cloud of points: places `[n, 2]`, values and sizes."""
    return [
        (np.asarray(each.get_offsets()), each.get_array(), each.get_sizes())
        for each in figure.axes[0].collections
    ]


def test_examples_stand_where_they_are_the_strongest_on_top_and_largest():
    scores = np.array([1.0, -4.0, 2.0, -3.0])
    background, (places, values, sizes) = clouds(
        plots.score_map(LONGITUDE, LATITUDE, scores)
    )
    assert len(background[0]) == 0
    np.testing.assert_array_equal(values, [1, 2, -3, -4])
    order = [0, 2, 3, 1]
    np.testing.assert_array_equal(places[:, 0], LONGITUDE[order])
    np.testing.assert_array_equal(places[:, 1], LATITUDE[order])
    assert (np.diff(sizes) > 0).all()


def test_colours_of_both_signs_are_centred_on_zero():
    figure = plots.score_map(LONGITUDE, LATITUDE, [1.0, -4.0, 2.0, 3.0])
    assert figure.axes[0].collections[1].get_clim() == (-4, 4)


@pytest.mark.parametrize(
    ("scores", "coloured"),
    [([5.0, -4.0, 2.0, -3.0], {5, -4}), ([5.0, 4.0, 2.0, 3.0], {5})],
)
def test_only_the_most_extreme_are_coloured(scores, coloured):
    background, (_, values, _) = clouds(
        plots.score_map(LONGITUDE, LATITUDE, scores, most=1)
    )
    assert set(values) == coloured
    assert len(background[0]) == 4 - len(coloured)


def test_queries_are_drawn_over_a_map_of_the_extent_asked_for():
    figure = plots.score_map(
        LONGITUDE,
        LATITUDE,
        [1.0, 2.0, 3.0, 4.0],
        queries=([-121.5], [36.5]),
        extent=(-123, -121, 36, 38),
        name="TracIn",
        log=True,
    )
    axes, bar = figure.axes
    np.testing.assert_array_equal(clouds(figure)[2][0], [[-121.5, 36.5]])
    assert (axes.get_xlim(), axes.get_ylim()) == ((-123, -121), (36, 38))
    assert (bar.get_ylabel(), bar.get_yscale()) == ("TracIn", "log")
    # A degree of longitude at 37 degrees north is 0.8 degrees of latitude.
    assert axes.get_aspect() == pytest.approx(1 / 0.8, abs=0.01)


def test_scale_is_as_long_as_it_says():
    figure = plots.score_map([0.0, 1.0], [-0.5, 0.5], [1.0, 2.0])
    axes = figure.axes[0]
    west, east = axes.lines[0].get_xdata()
    (label,) = [text.get_text() for text in axes.texts]
    kilometres = float(label.removesuffix(" km"))
    assert (east - west) * 111.2 == pytest.approx(kilometres, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"longitude": [1.0]}, "`longitude` should have length 4"),
        ({"latitude": [1.0]}, "`latitude` should have length 4"),
        ({"scores": []}, r"shape \(0,\)"),
        ({"scores": [1.0, 2.0, np.nan, 3.0]}, "1 of them NaN or infinite"),
        ({"scores": [0.0, 1.0, 2.0, 3.0], "log": True}, "scores above zero"),
    ],
)
def test_map_refuses_what_does_not_fit(changes, message):
    arguments = {
        "longitude": LONGITUDE,
        "latitude": LATITUDE,
        "scores": np.ones(4),
    }
    with pytest.raises(ValueError, match=message):
        plots.score_map(**arguments | changes)
