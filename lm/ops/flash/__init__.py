"""Flash attention on TPUs and GPUs: softmax(Q K^T) V block by block, without an L x S array in memory."""

from lm.ops.flash.choose import Asked, Flash, choose

__all__ = ["Asked", "Flash", "choose"]
