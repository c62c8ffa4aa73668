"""For test suites: servers in containers, and certificates; the extra `testing`.

`containers` has `TritonContainer`, `MlflowContainer` and `S3Container`, in testcontainers' idiom;
`pki` a private certificate authority.
"""
