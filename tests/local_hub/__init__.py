"""A stand-in for the Hugging Face Hub: real HTTP on 127.0.0.1, reached through the real `huggingface_hub` client.

    with LocalHub() as hub:
        print(hub.run_python(source, cache_dir, token=hub.token))
        assert "config.json" in hub.files("org/vit")

It shows what the client sends and how the client reacts, not that the real Hub behaves the same. Simplified on
purpose: one account owns every namespace, listings have one page, metadata blocks are not parsed, the Xet protocol is
missing (switched off in the client), and so are Spaces, discussions, search and the dataset viewer.

Files, from the bottom up: `storage` keeps repositories and knows no HTTP; `messages` are requests and responses;
`access` says who may do what, `gitattributes` what goes to LFS; `repositories`, `revisions`, `reading`, `writing` and
`lfs_storage` have one function per endpoint and `routes` the table of them; `faults` are what a test asks to break;
`server` moves bytes; `hub` is the front door.
"""

from local_hub.hub import LocalHub, local_hub

__all__ = ["LocalHub", "local_hub"]
