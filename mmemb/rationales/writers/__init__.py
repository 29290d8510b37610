"""Writers of rationales: models, servers, tables, controls."""
