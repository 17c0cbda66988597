"""Low-rank adapters for layers of any precision."""


def adapt(layer, rank=2):
    """Enables adapters in the layer's own precision, not always float32."""
    add_weight = layer.add_weight
    vars(layer)["add_weight"] = lambda **options: add_weight(
        **{**options, "dtype": layer.variable_dtype}
    )
    layer.enable_lora(rank, lora_alpha=3)
    del vars(layer)["add_weight"]
