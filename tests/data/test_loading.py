import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from tokensieve.data import Failure, image_set, load_batches
from tokensieve.errors import InputError, RecipeError


@pytest.fixture
def folder(save, tmp_path):
    """Seven good pictures with their number as grey, and three bad ones in between."""
    for number in range(7):
        save(f"set/{number // 4}/{number}.png", value=number)
    (tmp_path / "set/0/0text.jpg").write_text("hello")
    (tmp_path / "set/1/6empty.png").write_bytes(b"")
    whole = save("whole.jpg", size=(200, 200)).read_bytes()
    (tmp_path / "set/1/9cut.jpg").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "set"


@pytest.mark.versions
@pytest.mark.parametrize("workers", [0, 2])
def test_good_ones_go_on_and_bad_ones_are_on_record(folder, small, workers):
    batches = load_batches(image_set(folder, small), 4, workers=workers)
    assert len(batches) == 3
    for _ in range(2):  # a second pass starts a new record
        seen = list(batches)
        assert sum(len(batch.images) for batch in seen) == 7
        grey = torch.cat([batch.images[:, 0, 0, 0] for batch in seen])
        torch.testing.assert_close((grey * 0.5 + 0.5) * 255, torch.arange(7.0))
        assert torch.cat([batch.labels for batch in seen]).tolist() == [0, 0, 0, 0, 1, 1, 1]
        assert [path.rsplit("/", 1)[-1] for batch in seen for path in batch.paths] == [f"{i}.png" for i in range(7)]
        failed = {failure.path.rsplit("/", 1)[-1]: failure.reason for failure in batches.failures}
        assert set(failed) == {"0text.jpg", "6empty.png", "9cut.jpg"}
        assert "truncated" in failed["9cut.jpg"]


def test_record_fills_as_it_goes_and_an_empty_batch_is_left_out(folder, small):
    batches = load_batches(image_set(folder, small), 1)
    assert [len(batches.failures) for _ in batches] == [0, 1, 1, 1, 1, 1, 1]
    assert len(batches.failures) == 3


class Stream(IterableDataset):
    name = "stream"

    def __iter__(self):
        for number in range(5):
            yield torch.full((3, 2, 2), float(number)), number


@pytest.mark.versions
@pytest.mark.parametrize("workers", [0, 3])
def test_stream_comes_once_and_in_order(workers):
    batches = load_batches(Stream(), 2, workers=workers)
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    assert [batch.paths[0] for batch in batches] == ["stream[0]", "stream[2]", "stream[4]"]
    with pytest.raises(TypeError, match="no length"):
        len(batches)


class Own(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            raise InputError("is damaged")
        return torch.zeros(3, 2, 2), torch.tensor(index), "more"


def test_any_data_set_will_do():
    batches = load_batches(Own(), 3)
    (batch,) = batches
    assert batch.labels.tolist() == [0, 2]
    assert batches.failures == [Failure("1", "cannot be read: is damaged")]


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"batch_size": 1, "workers": -1}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(RecipeError, match="batch_size must be at least 1"):
        load_batches(Own(), **settings)
