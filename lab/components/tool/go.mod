// The lab's own small tool: the pause container, a test server, and the way in to the API server.
module pgherd.io/lab/tool

go 1.24.0
