"""Videos over HTTP: their files, and the object that clients of the OpenAI API know."""
