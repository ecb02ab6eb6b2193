"""What `imagewam convert --set` can give, in place of a file beside the weights."""

SETTABLE = {
    "rope_axes": "channels of a head that each axis turns: 32,32,32,32",
    "rope_theta": "base of the RoPE wavelengths",
    "lora_alpha": "alpha of LoRA factors; the files do not hold it",
    "horizon": "actions per chunk",
    "max_horizon": "the expert's limit of it",
    "expert_dim": "width of a new action expert",
    "expert_mlp_ratio": "inner width of its MLPs over that",
    "expert_scale": "false: its first weights are resized without scaling",
    "pack_proprio_after_text": "false: the robot state stands behind the padded text",
    "proprio_position": "the padded text length, where it does",
    "coordinate_dtype": "of positions and times: bfloat16 or float32",
    "feature_layers": "layers that text features are taken after: 9,18,27",
    "normalization": "of actions and states: min/max, z-score, q01/q99 or low/high",
    "embodiment": "of per-embodiment statistics, the one to take",
}
