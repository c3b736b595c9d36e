"""Memory for buckets is used again, and never while somebody still looks at it."""

import torch

from rlsys.transports.memory import MOST, HostMemory


def test_memory_that_nobody_views_is_handed_out_again():
    memory = HostMemory()
    first = memory.take(1000)
    address = first.data_ptr()
    del first
    assert memory.take(800).data_ptr() == address


def test_memory_that_a_view_of_a_view_still_shows_is_left_alone():
    memory = HostMemory()
    view = memory.take(400).view(torch.float32)[10:20].reshape(2, 5)
    view.fill_(3.0)
    other = memory.take(400)
    other.zero_()
    assert view.eq(3.0).all()


def test_too_small_a_piece_is_not_taken():
    memory = HostMemory()
    memory.take(10)
    assert memory.take(1000).numel() == 1000


def test_only_so_many_pieces_are_kept():
    memory = HostMemory()
    held = [memory.take(100) for _ in range(3 * MOST)]
    assert len(memory._pieces) == MOST and len({tensor.data_ptr() for tensor in held}) == 3 * MOST
