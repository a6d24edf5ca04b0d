import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Small images are faster without threads, which would wait for each other on shared cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
