"""The kind of value that the upstream's addresses are, for the configuration's models."""

from urllib.parse import urlsplit

from pydantic import BeforeValidator

from gateway.config.addresses import UNIX, UpstreamAddress, is_socket_path
from gateway.config.scalars import expected, reader_of, url

# More addresses than this are a service's own load balancer to know, by one name.
ADDRESSES_MAX = 64
_FORMS = "http://host:port, https://host:port or unix:/path"


def upstream_addresses() -> BeforeValidator:
    """Addresses, as a list or separated by commas, none of them twice."""
    read_url = reader_of(url(_FORMS, "http", "https", host_only=True))

    def read_one(text: object) -> UpstreamAddress:
        if isinstance(text, str) and text.strip().startswith(UNIX):
            path = text.strip().removeprefix(UNIX)
            if not is_socket_path(path):
                raise expected(_FORMS, text)
            return UpstreamAddress(text=text.strip(), path=path)
        address: str = read_url(text)
        parts = urlsplit(address)
        tls = parts.scheme == "https"
        return UpstreamAddress(
            text=address, host=parts.hostname or "", port=parts.port or (443 if tls else 80), tls=tls
        )

    def read(value: object) -> tuple[UpstreamAddress, ...]:
        if isinstance(value, list | tuple):
            listed = list(value)
        else:
            # A single one is read as it came, with the variable that it came from.
            listed = value.split(",") if isinstance(value, str) and "," in value else [value]
        if not 0 < len(listed) <= ADDRESSES_MAX:
            raise expected(f"1 to {ADDRESSES_MAX} addresses", f"{len(listed)} of them")
        addresses = tuple(read_one(one) for one in listed)
        for place, address in enumerate(addresses):
            if address in addresses[:place]:
                raise expected("each address once", address.text)
        return addresses

    return BeforeValidator(read)
