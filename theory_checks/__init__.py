"""The claims of SiPP as code that tries to falsify them."""
