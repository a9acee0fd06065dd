"""NewMethod trains all that it learns, and its checkpoint is what was tested."""

from tests.trainers.files import row_tensors, train_and_test
from tests.trainers.methods import batch, build


def test_gradients_reach_all_that_is_learned(data, tmp_path, weights):
    trainer = build("NewMethod", data, tmp_path, weights)
    trainer.gradients(*batch(weights, trainer.num_classes))
    for name, p in trainer.model.learner.named_parameters():
        assert p.grad is not None and p.grad.norm() > 0, name


def test_it_says_what_is_bound_to_the_classes(data, tmp_path, weights):
    trainer = build("NewMethod", data, tmp_path, weights)
    assert row_tensors("NewMethod", data, tmp_path) == set(trainer.class_rows)


def test_a_run_and_its_file(data, tmp_path, capsys):
    train_and_test("NewMethod", data, tmp_path, capsys)
