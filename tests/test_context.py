"""The context part starts as the identity and sees its own bag only."""

import torch
from bags import bag, facts

from mil.context import SelfAttentionContext
from mil.packed import pack


def test_context_changes_nothing_until_its_layer_scale_moves():
    context = SelfAttentionContext(facts(), heads=4)
    vectors = torch.cat([bag(5, 1).tensor(), bag(7, 2).tensor()])
    torch.testing.assert_close(context(vectors, pack([5, 7])), vectors)


def test_tiles_see_the_others_of_their_bag_and_no_others():
    torch.manual_seed(0)
    context = SelfAttentionContext(facts(), heads=4)
    with torch.no_grad():
        context.gamma.fill_(1.0)
    first, second, other = bag(5, 1).tensor(), bag(7, 2).tensor(), bag(7, 3).tensor()
    together = context(torch.cat([first, second]), pack([5, 7]))
    torch.testing.assert_close(together[:5], context(torch.cat([first, other]), pack([5, 7]))[:5])
    changed = first.clone()
    changed[0] = -changed[0]
    assert not torch.allclose(together[1:5], context(torch.cat([changed, second]), pack([5, 7]))[1:5], atol=1e-3)
