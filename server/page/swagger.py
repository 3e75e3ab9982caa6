"""The page at /docs: Swagger UI with local assets, and the hash of its inline script."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi.openapi.docs import get_swagger_ui_html

PAGE = bytes(
    get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="mochi-server",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/docs/favicon-32x32.png",
    ).body
)


def _hash_of_script(page: bytes) -> str:
    """The hash of the inline script, for the content security policy."""
    (script,) = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(script).digest()).decode()


SCRIPT_HASH = _hash_of_script(PAGE)
