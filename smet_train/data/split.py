"""Which documents are held out for validation."""

import hashlib

_FEW = 20


def is_validation(document: str, fraction: float) -> bool:
    """Whether ``document`` belongs to the validation split of about ``fraction`` of all documents.

    A function of its text alone, so equal documents fall on the same side and no run trains on what it is judged by.
    """
    digest = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def advice_on_documents(count: int) -> str:
    """What to write where the source's documents are too few to be split; "" where they are many."""
    if count >= _FEW:
        return ""
    return (
        f"with {count} document{'s' if count != 1 else ''} there is little to hold out: write data.text_unit=paragraph "
        "or line for a text file, or use more data"
    )
