"""The sizes that decide the model's arrays."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The notebook's, by default."""

    hidden: int = dataclasses.field(default=200, metadata={"help": "Hidden neurons.", "also": "h_size"})
    context: int = dataclasses.field(
        default=3, metadata={"help": "Characters of context.", "examples": True, "also": "n"}
    )
    embedding: int = dataclasses.field(default=10, metadata={"help": "Numbers per character.", "also": "emb_size"})
