"""What every encoder promises, whatever its family: each promise takes a loaded encoder and the side of its tiles.

`test_encoder_contract.py` and the case files of the families that run elsewhere go through all of them.
"""

import pytest
import torch

from feature_extraction.encoder import Encoder
from feature_extraction.errors import MismatchError

COSINE = {torch.bfloat16: 0.99, torch.float16: 0.999}
"""How near to float32 the two half precisions stay."""


def tiles(n: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def keeps_its_spec(encoder: Encoder, side: int) -> None:
    found = encoder.embed_tiles(tiles(3, side), list(encoder.spec.widths))
    assert {space: tuple(rows.shape) for space, rows in found.items()} == {
        space: (3, width) for space, width in encoder.spec.widths.items()
    }
    for rows in found.values():
        assert torch.isfinite(rows).all()
        assert (rows.dtype, rows.device.type) == (torch.float32, "cpu")
        assert not torch.allclose(rows[0], rows[1], atol=1e-3)
    if "joint" in found:
        torch.testing.assert_close(found["joint"].norm(dim=1), torch.ones(3))
    assert len(encoder.fingerprint) == 64


def joint_is_the_projection_of_backbone(encoder: Encoder, side: int) -> None:
    if set(encoder.spec.widths) != {"joint", "backbone"}:
        return
    found = encoder.embed_tiles(tiles(3, side), ["backbone", "joint"])
    torch.testing.assert_close(encoder.project(found["backbone"]), found["joint"])
    with pytest.raises(MismatchError, match="numbers, these have"):
        encoder.project(torch.ones(1, encoder.spec.widths["backbone"] + 1))


def says_the_same_twice(encoder: Encoder, side: int) -> None:
    for space in encoder.spec.widths:
        first, second = (encoder.embed_tiles(tiles(2, side), [space])[space] for _ in range(2))
        assert torch.equal(first, second)


def neighbours_change_nothing(encoder: Encoder, side: int) -> None:
    batch = tiles(5, side)
    for space in encoder.spec.widths:
        together = encoder.embed_tiles(batch, [space])[space]
        alone = torch.cat([encoder.embed_tiles(tile[None], [space])[space] for tile in batch])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def half_precision_agrees(encoder: Encoder, side: int) -> None:
    spaces = list(encoder.spec.widths)
    exact = encoder.embed_tiles(tiles(4, side), spaces)
    for precision, least in COSINE.items():
        with torch.autocast("cpu", precision):
            rounded = encoder.embed_tiles(tiles(4, side), spaces)
        for space, rows in exact.items():
            assert rounded[space].dtype == torch.float32
            assert torch.nn.functional.cosine_similarity(rows, rounded[space]).min() > least


def texts_depend_on_their_words_only(encoder: Encoder, _: int) -> None:
    if not encoder.spec.has_text:
        return
    alone = encoder.embed_texts(["keratin pearls"])[0]
    among = encoder.embed_texts(["an image of normal lung with glands", "keratin pearls", "one"])[1]
    assert torch.equal(alone, among)
    assert not torch.allclose(alone, encoder.embed_texts(["keratin gland"])[0], atol=1e-4)
    assert (alone.dtype, tuple(alone.shape)) == (torch.float32, (encoder.spec.widths["joint"],))
    torch.testing.assert_close(alone.norm(), torch.tensor(1.0))
    assert encoder.embed_texts([]).shape == (0, encoder.spec.widths["joint"])


def a_long_text_is_counted_whole_and_read_as_far_as_it_fits(encoder: Encoder, _: int) -> None:
    if not encoder.spec.has_text:
        return
    long = " ".join(["keratin"] * 300)
    counts = encoder.count_tokens(["keratin", "keratin pearls", long])
    assert counts == sorted(set(counts))
    assert counts[-1] >= 300 > (encoder.spec.context_length or 300)
    assert torch.isfinite(encoder.embed_texts([long])).all()


def what_it_lacks_is_refused(encoder: Encoder, side: int) -> None:
    widths, name = encoder.spec.widths, encoder.spec.name
    for space in {"joint", "backbone"} - set(widths):
        with pytest.raises(MismatchError, match=rf"{name} has no {space} space, it has {next(iter(widths))}"):
            encoder.embed_tiles(tiles(1, side), [space])
        with pytest.raises(MismatchError, match=rf"{name} has no projection"):
            encoder.project(torch.ones(1, next(iter(widths.values()))))
    for ask in (encoder.embed_texts, encoder.count_tokens) if not encoder.spec.has_text else ():
        with pytest.raises(MismatchError, match=rf"{name} has no text tower"):
            ask(["keratin"])


PROMISES = (
    keeps_its_spec,
    joint_is_the_projection_of_backbone,
    says_the_same_twice,
    neighbours_change_nothing,
    half_precision_agrees,
    texts_depend_on_their_words_only,
    a_long_text_is_counted_whole_and_read_as_far_as_it_fits,
    what_it_lacks_is_refused,
)


def joint_is_the_unit_product(encoder: Encoder, side: int, matrix: torch.Tensor) -> None:
    """Where the projection is one matrix, backbone by joint: the same by plain arithmetic, in float64."""
    found = encoder.embed_tiles(tiles(3, side), ["backbone", "joint"])
    product = found["backbone"].double() @ matrix.double()
    expected = product / product.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found["joint"].double(), expected, atol=1e-5, rtol=1e-4)
