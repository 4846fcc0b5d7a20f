import torch

from palinka.training import FiringClock


def test_it_counts_tokens_since_the_last_firing() -> None:
    torch.manual_seed(0)
    clock = FiringClock(12)
    fired_at = [0] * 12
    tokens = 0
    for rows in (3, 1, 5, 4):
        latents = torch.randn(rows, 12) * (torch.rand(rows, 12) < 0.1)
        clock.update(latents)
        tokens += rows
        for latent in range(12):
            if latents[:, latent].any():
                fired_at[latent] = tokens
    assert clock.tokens_since.tolist() == [tokens - at for at in fired_at]
    dead = clock.dead(5)
    assert dead.tolist() == [tokens - at >= 5 for at in fired_at]
    assert 0 < dead.sum() < 12


def test_no_latent_is_dead_before_so_many_tokens_were_seen() -> None:
    clock = FiringClock(3)
    clock.update(torch.zeros(9, 3))
    assert not clock.dead(10).any()
    clock.update(torch.zeros(1, 3))
    assert clock.dead(10).all()


def test_it_is_part_of_the_state() -> None:
    clock = FiringClock(2)
    clock.update(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    again = FiringClock(2)
    again.load_state_dict(clock.state_dict())
    assert again.tokens_since.tolist() == [2, 0]
    assert again.tokens_since.dtype == torch.int64
    assert again.bfloat16().tokens_since.dtype == torch.int64
