"""Which documents are held out for validation."""

import hashlib


def is_validation(document: str, fraction: float) -> bool:
    """Whether ``document`` belongs to the validation split of about ``fraction`` of all documents.

    A function of its text alone, so equal documents fall on the same side and no run trains on what it is judged by.
    """
    digest = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64
