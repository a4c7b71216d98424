"""Who asks, and what they may do: the initial token, API keys, tokens of OpenID Connect issuers → `Principal`."""
