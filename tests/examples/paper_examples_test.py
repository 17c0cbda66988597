"""The programs that draw the paper's figures, run small on real data."""

import re

from tests.examples.programs import DATA, assert_pictures, needs, run_program

IMAGES = f"--data_dir={DATA / 'tfds'}"
METHODS = ["TracIn", "Influence functions", "Representer points"]


def sides(printed, label):
    """The labels of all proponents and opponents that were printed."""
    return {
        side: re.findall(
            rf"({label}) {sign}[\d.e+-]+",
            "\n".join(re.findall(rf"^  {side} .*$", printed, re.M)),
        )
        for side, sign in (("proponents", r"\+"), ("opponents", "-"))
    }


@needs("tfds/mnist")
def test_mnist_asks_three_methods_about_the_same_digits(tmp_path, capsys):
    printed = run_program(
        "mnist",
        tmp_path,
        capsys,
        IMAGES,
        "--num_train=300",
        "--epochs=3",
        "--num_queries=2",
        "--k=3",
        "--checkpoints=2",
        "--layers=logits",
    )
    queries = re.findall(r"^Test digit (\d)$", printed, re.M)
    assert len(set(queries)) == 2
    names = "|".join(METHODS)
    assert re.findall(rf"^ ({names})$", printed, re.M) == METHODS * 2
    found = sides(printed, r"\d")
    assert [len(labels) for labels in found.values()] == [18, 18]
    expected = [query for query in queries for _ in range(9)]
    pairs = list(zip(found["proponents"], expected, strict=True))
    assert sum(one == other for one, other in pairs) > 12
    assert "30 of 300 labels are wrong." in printed
    assert len(re.findall(r"^  epoch .* AUC 0\.\d+$", printed, re.M)) == 3
    assert_pictures(tmp_path, "figure8.png", "figure9.png")


@needs("tfds/cifar10")
def test_cifar10_counts_the_classes_of_proponents(tmp_path, capsys):
    printed = run_program(
        "cifar10",
        tmp_path,
        capsys,
        IMAGES,
        "--num_train=64",
        "--epochs=1",
        "--k=2",
        "--layers=logits",
    )
    queries = r"^Test image \d+: (cat|automobile) \([a-z]+\)$"
    assert re.findall(queries, printed, re.M) == ["cat", "automobile"]
    counts = r"^  first 50 (?:proponents|opponents)   ?[a-z]+ \d+, "
    assert len(re.findall(counts, printed, re.M)) == 12
    assert_pictures(tmp_path, "figure5.png", "figure6.png")


@needs("california_housing")
def test_california_housing_finds_influence_near_by(tmp_path, capsys):
    printed = run_program(
        "california_housing",
        tmp_path,
        capsys,
        f"--data_dir={DATA / 'california_housing'}",
        "--epochs=2",
        "--k=20",
        "--checkpoints=1",
        "--strategy=one_device",
    )
    line = r"^  {} +\d+ km +([\d.]+)%$"
    near, far = (
        float(re.search(line.format(name), printed, re.M)[1])
        for name in ("the 20 strongest proponents", "all training examples")
    )
    assert near > far
    assert len(re.findall(r"^ +\d+ to +\d+ +[\d.e+-]+$", printed, re.M)) == 4
    assert_pictures(
        tmp_path, "figure10a.png", "figure10a_bay.png", "figure10b.png"
    )


@needs("dbpedia")
def test_dbpedia_explains_a_text_by_texts_of_its_class(tmp_path, capsys):
    printed = run_program(
        "dbpedia",
        tmp_path,
        capsys,
        f"--data_dir={DATA / 'dbpedia'}",
        "--num_train=1000",
        "--epochs=8",
        "--class=Plant",
        "--k=4",
        "--projection=256",
    )
    assert re.search(r"^Query +Plant  +\w+", printed, re.M)
    line = r"^{} +{}[\d.e+-]+  (\w+)"
    proponents = re.findall(line.format("proponent", r"\+"), printed, re.M)
    opponents = re.findall(line.format("opponent", "-"), printed, re.M)
    assert proponents.count("Plant") >= 3
    assert len(opponents) == 4
    assert "Plant" not in opponents
    assert_pictures(tmp_path, "table2.png")
