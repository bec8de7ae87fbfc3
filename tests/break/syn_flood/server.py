# Greets everybody with one byte.
#   server.py PORT BACKLOG
import socket
import sys

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("", int(sys.argv[1])))
listener.listen(int(sys.argv[2]))
print("ready", flush=True)
while True:
    try:
        connection, _ = listener.accept()
        connection.sendall(b"x")
        connection.close()
    except OSError:
        pass
