"""What the paper found, as pages quote it beside one's own numbers."""

SMALL_LLMS = (
    "The paper saw blocks of small LLMs hurt: behind ViT-S on ImageNet (100 epochs) it reports 75.25 % plain, 71.63 % "
    "with OPT-125M, 71.56 % with OPT-350M, and gains only from 1.3 billion parameters on. The two small ones were "
    "trained at a fifth of the learning rate, and nothing between 350M and 1.3B was tried."
)
DEPTH = (
    "The paper (Fig. 2, LLaMA-7B and OPT on ImageNet) found that depth matters, with the last layers helping "
    "consistently without always being the best."
)
