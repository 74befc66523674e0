"""The memory of training is counted on tensors without data: what those with data take at a small size."""

import pytest

from benchmarks import train_memory


@pytest.mark.parametrize("name", train_memory.ADAPTERS)
def test_tensors_without_data_count_as_those_with_data(name, monkeypatch):
    monkeypatch.setattr(train_memory, "SIDE", 8)
    model, batch = train_memory.empty(train_memory.ADAPTERS[name], (2, 1, 2), 2, 16)
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    without = train_memory.peaks(model, batch)
    model.zero_grad()
    with_data = train_memory.peaks(model, batch, fake=False)
    assert without == pytest.approx(with_data, rel=1e-4)
    gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    first, both, accumulated = with_data
    assert both >= gradients and accumulated >= gradients + first / 2
