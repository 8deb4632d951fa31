"""Which documents are held out, decided by their content alone."""

from hashlib import blake2b


def is_validation(text: str, fraction: float) -> bool:
    """Whether a document belongs to the validation split.

    A hash of the text decides, so equal documents fall on the same side, whatever the order, epoch or file.
    """
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64
