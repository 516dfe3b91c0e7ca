"""Row "VLM + SD finetune": a language model that writes, and a Stable Diffusion whose prompt its words are."""
