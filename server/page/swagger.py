"""The page at /docs: Swagger UI with local assets, and the hash of its inline script."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi.openapi.docs import get_swagger_ui_html

PAGE = bytes(
    get_swagger_ui_html(
        # Relative to the page, which may be below a path of a proxy.
        openapi_url="openapi.json",
        title="mochi-server",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon-32x32.png",
    ).body
)
(_SCRIPT,) = re.findall(rb"<script>(.*?)</script>", PAGE, re.DOTALL)
SCRIPT_HASH = "sha256-" + base64.b64encode(hashlib.sha256(_SCRIPT).digest()).decode()
"""Of the inline script, for the content security policy."""
