from keras_tracin.scripts import check
from tests.scripts.helpers import TASK


def test_report_is_printed_and_ready_is_success(work):
    printed = work.run(check, TASK, "--epochs=2,5", "--max_examples=100")
    assert printed.startswith("cost of TracIn.top_k")
    assert "covered: " in printed
    assert "100 queries" in printed
    assert printed.splitlines()[-1].startswith("ready")


def test_what_is_in_the_way_has_an_exit_code_of_its_own(work, capsys):
    assert check.main([TASK, "--layers=lost", "--epochs=2,5"]) == 1
    printed = capsys.readouterr().out
    assert "lost" in printed
    assert printed.splitlines()[-1].startswith("not ready")
