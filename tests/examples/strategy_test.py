import re

from tests.examples.programs import DATA, assert_pictures, needs
from tests.processes import end_of, start

pytestmark = needs("tfds/mnist")


def test_an_example_trains_and_scores_under_mirrored_strategy(tmp_path):
    # A process of its own: devices are cut in two before anything is computed.
    code, printed = end_of(
        start(
            "examples.find_mislabeled",
            "--strategy=mirrored",
            f"--output_dir={tmp_path}",
            f"--data_dir={DATA / 'tfds'}",
            "--num_train=1500",
            "--epochs=4",
            "--checkpoints=2",
            "--corruption=uniform",
            "--fix=",
        )
    )
    assert code == 0, printed
    assert re.search(r"== uniform: \d+ of 1,350 labels are wrong", printed)
    for name in ("find_label_issues", "TracIn"):
        (auc,) = re.findall(rf"^  {name}  .*(\d\.\d{{3}})$", printed, re.M)
        assert float(auc) > 0.75
    assert_pictures(tmp_path, "recall_uniform.png", "map_uniform.png")
