"""Files over http(s): read from any byte on, and identified by what their server says of them."""

import errno
import http
import http.client
import io
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from smet_train.errors import DataError

_TIMEOUT_S = 30
# Too busy, too slow, too many: worth another try.
_PASSING_STATUS = (408, 425, 429)
_PASSING_ERRNO = (
    errno.EIO,
    errno.ESTALE,
    errno.EAGAIN,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENETRESET,
    errno.EHOSTUNREACH,
)


def is_url(name: str) -> bool:
    """Whether ``name`` is fetched over http(s) instead of from a disk."""
    return name.startswith(("http://", "https://"))


def quoted_url(url: str) -> str:
    """``url`` with spaces and letters beyond ASCII as a server is sent them; what is quoted already stays.

    Raises:
        DataError: if it names no host, or a port that can't be one: no server would ever answer.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        wrong = "" if parts.hostname else "it names no host"
        _ = parts.port  # raises for one that is no number, or too large
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise DataError(f"data.files: {url} is not a URL ({wrong}); write https://HOST/PATH or https://HOST:PORT/PATH")
    return urllib.parse.quote(url, safe=":/?#[]@!$&'()*+,;=%~")


class RemoteFile(io.RawIOBase):
    """A URL as a file: one request as long as it is read straight on, a new one where it is read after a seek.

    Servers that don't serve ranges are asked for the whole, and what comes before the position is thrown away.
    A connection that ends early is an error, never a short file.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._response: Any = None
        self._position = 0  # of the next byte that is asked for
        self._at = 0  # of the next byte of the response
        self._size: int | None = None

    def readable(self) -> bool:
        """True, for ``io``."""
        return True

    def seekable(self) -> bool:
        """True: a seek asks the server for a range when it next reads."""
        return True

    def tell(self) -> int:
        """Bytes from the beginning."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move without a request, but from the end, whose place the server must tell; returns the new position."""
        if whence == io.SEEK_END:
            self._connect(self._position)
            if self._size is None:  # parquet alone is read from its end
                raise DataError(
                    f"data.files: {self._url}: its server does not tell how long it is (no Content-Length), which "
                    "Parquet needs; download the file, or write it as jsonl"
                )
            offset += self._size
        elif whence == io.SEEK_CUR:
            offset += self._position
        self._position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` from the response.

        Raises:
            OSError: if the server can't be reached, answers with an error, or ends the connection early.
        """
        if self._size is not None and self._position >= self._size:
            return 0
        self._connect(self._position)
        if self._response is None:
            return 0
        try:
            n_bytes = int(self._response.readinto(buffer))
        except http.client.HTTPException as error:
            raise _lost(self._url, error) from error
        if n_bytes == 0 and len(buffer) and self._size is not None and self._at < self._size:
            raise ConnectionError(f"{self._url}: the connection ended at byte {self._at} of {self._size}")
        self._position += n_bytes
        self._at += n_bytes
        return n_bytes

    def close(self) -> None:
        """Close the connection as well."""
        self._hang_up()
        super().close()

    def _hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def _connect(self, position: int) -> None:
        if self._response is not None and self._at == position:
            return
        self._hang_up()
        # Compressed by the server for the way, the bytes would be others than those that a position counts.
        headers = {"Accept-Encoding": "identity"}
        if position:
            headers["Range"] = f"bytes={position}-"
        try:
            response = urllib.request.urlopen(urllib.request.Request(self._url, headers=headers), timeout=_TIMEOUT_S)
        except http.client.HTTPException as error:
            raise _lost(self._url, error) from error
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            self._size = position  # nothing comes after it
            return
        self._response = response
        length = response.headers.get("Content-Length")
        self._at = position if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        if length is not None:
            self._size = self._at + int(length)
        self._discard(position - self._at)

    def _discard(self, n_bytes: int) -> None:
        while n_bytes:
            try:
                dropped = len(self._response.read(min(n_bytes, 1 << 20)))
            except http.client.HTTPException as error:
                raise _lost(self._url, error) from error
            if not dropped:
                raise ConnectionError(f"{self._url}: the connection ended at byte {self._at}")
            n_bytes -= dropped
            self._at += dropped


def _lost(url: str, error: http.client.HTTPException) -> Exception:
    """For those who know the system's errors: an answer that is not HTTP, or that ends too early.

    What was asked for may be at fault too, by its name and password, or by where a server has sent us.
    """
    if isinstance(error, http.client.InvalidURL):
        return DataError(f"data.files: {url} can't be fetched ({error}); write a URL that is served to anyone")
    return ConnectionError(f"{url}: {error!r}")


def is_passing(error: BaseException) -> bool:
    """Whether ``error`` may be gone in a moment: a lost connection, a server or disk that answers too late."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in _PASSING_STATUS
    if isinstance(error, urllib.error.URLError | ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING_ERRNO


def is_missing(error: BaseException) -> bool:
    """Whether ``error`` says that there is no such file."""
    return isinstance(error, FileNotFoundError) or (
        isinstance(error, urllib.error.HTTPError) and error.code in (404, 410)
    )


def remote_identity(url: str) -> tuple[int | None, str]:
    """(bytes, what changes with the content) of ``url``, as far as its server tells: None, "" if it tells nothing.

    Raises:
        DataError: if there is nothing behind ``url``.
        OSError: if the server can't be reached or fails.
    """
    request = urllib.request.Request(url, method="HEAD", headers={"Accept-Encoding": "identity"})
    with _told(url):
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                headers = response.headers
        except urllib.error.HTTPError as error:
            if error.code in (403, 405, 501):  # signed addresses and simple servers serve GET alone
                return None, ""
            raise
        except http.client.HTTPException as error:
            raise _lost(url, error) from error
    length = headers.get("Content-Length")
    return (None if length is None else int(length)), headers.get("ETag") or headers.get("Last-Modified") or ""


@contextmanager
def _told(url: str) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        if is_passing(error):
            raise
        raise DataError(f"data.files: {url} answers {error.code} {error.reason}") from error
