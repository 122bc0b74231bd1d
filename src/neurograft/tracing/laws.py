"""Which class of symmetry each op lets pass along its units, beside what rules state of their positions."""

from neurograft.axes.symmetry import Symmetry

# ops that are linear along every axis that stays free: they move entries, repeat them or average over others
LINEAR = frozenset(
    {
        *("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten", "unflatten"),
        *("t", "transpose", "permute", "swapaxes", "movedim", "expand", "expand_as", "repeat", "broadcast_to"),
        *("slice", "select", "split", "split_with_sizes", "chunk", "unbind", "narrow", "unsafe_split", "unsafe_chunk"),
        *("cat", "stack", "clone", "contiguous", "detach", "alias", "lift_fresh", "_to_copy", "copy", "to"),
        *(
            "embedding",
            "index",
            "index_select",
            "gather",
            "dropout",
            "native_dropout",
            "neg",
            "constant_pad_nd",
            "flip",
        ),
        *("avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "adaptive_avg_pool1d", "unfold", "roll"),
        *("upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d", "im2col", "col2im", "as_strided"),
    }
)
# ops that contract a weight or two activations: what is read along, and what is made
CONTRACTIONS = frozenset(
    {
        *("mm", "addmm", "bmm", "baddbmm", "linear", "mv", "addmv", "dot", "convolution"),
        *("_grouped_mm", "grouped_mm", "transformers::grouped_mm_fallback"),
    }
)
# softmax(q·kᵀ) v: linear along the width of v, contracted along that of q and k
ATTENTION = frozenset(
    {
        *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
        *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
        *("scaled_dot_product_attention", "_scaled_dot_product_attention_math"),
    }
)
# where a contraction has a bias, which makes the same units as the weight
BIAS = {"addmm": 0, "baddbmm": 0, "addmv": 0, "linear": 2, "convolution": 2}
# f(Gx) = Gf(x), entry by entry
ENTRYWISE: dict[str, Symmetry] = {
    **dict.fromkeys(
        ("relu", "leaky_relu", "abs", "amax", "amin", "max_pool1d", "max_pool2d", "max_pool2d_with_indices"),
        Symmetry.SCALED,
    ),
    **dict.fromkeys(("tanh", "sin", "asinh", "atan", "erf", "tan", "sinh", "sign"), Symmetry.SIGNED),
}
LAYER_NORMS = frozenset({"native_layer_norm", "layer_norm"})
RMS_NORMS = frozenset({"_fused_rms_norm", "rms_norm"})
BATCH_NORMS = frozenset(
    {
        *("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm"),
        *("_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "_batch_norm_no_update"),
    }
)
SUMS = frozenset({"sum", "mean"})
# 1ᵀOx = 1ᵀx, and with it the variance
FIXING_ONE = frozenset({"sum", "mean", "var", "std", "var_mean", "std_mean"})

__all__ = [
    "ATTENTION",
    "BATCH_NORMS",
    "BIAS",
    "CONTRACTIONS",
    "ENTRYWISE",
    "FIXING_ONE",
    "LAYER_NORMS",
    "LINEAR",
    "RMS_NORMS",
    "SUMS",
]
