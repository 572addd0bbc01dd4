// SPDX-License-Identifier: Apache-2.0

package cni

// Port mappings: what is sent, and what the service answers.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// mapped is the option for one mapping.
func mapped(hostPort, containerPort int32, protocol, hostIP string) NamespaceOpts {
	return WithCapabilityPortMap([]PortMapping{{hostPort, containerPort, protocol, hostIP}})
}

func TestClientPortMappings(t *testing.T) {
	d := &double{answer: good()}
	path := socket(t)
	defer serve(t, path, d)()
	c := at(t, path)
	_, err := c.Setup(context.Background(), "sandbox", "/n", WithCapabilityPortMap([]PortMapping{
		{8080, 80, "TCP", "2001:db8::1"}, {53, 53, "udp", "127.0.0.1"}, {1, 65535, "Sctp", ""},
		// Only declared.
		{0, 9000, "tcp", ""}, {0, 0, "", ""},
		// For both families: no conflict.
		{80, 80, "", "::"}, {80, 80, "", "::ffff:0.0.0.0"},
	}))
	if err != nil {
		t.Fatal(err)
	}
	var sent []string
	for _, one := range d.attached[0].PortMapping {
		sent = append(sent, fmt.Sprintf("%d %d %q %x", one.HostPort, one.ContainerPort, one.Protocol, one.HostIp))
	}
	want := []string{
		`8080 80 "tcp" 20010db8000000000000000000000001`,
		`53 53 "udp" 7f000001`,
		`1 65535 "sctp" `,
		`80 80 "" 00000000000000000000000000000000`,
		`80 80 "" 00000000`,
	}
	if !slices.Equal(sent, want) {
		t.Errorf("got %q\nwant %q", sent, want)
	}
	for words, opt := range map[string]NamespaceOpts{
		`"nowhere" is no IP address`:        mapped(1, 1, "tcp", "nowhere"),
		`"fe80::1%eth0" is no IP address`:   mapped(1, 1, "tcp", "fe80::1%eth0"),
		`"192.0.2.0/24" is no IP address`:   mapped(1, 1, "tcp", "192.0.2.0/24"),
		`host port -1: 1 to 65535`:          mapped(-1, 1, "tcp", ""),
		`host port 65536: 1 to 65535`:       mapped(65536, 1, "tcp", ""),
		`container port -1: 1 to 65535`:     mapped(1, -1, "tcp", ""),
		`container port 0: 1 to 65535`:      mapped(1, 0, "tcp", ""),
		`protocol "icmp": tcp, udp or sctp`: mapped(1, 1, "icmp", ""),
		`protocol "\xff": tcp, udp or sctp`: mapped(0, 1, "\xff", ""),
	} {
		_, err := c.Setup(context.Background(), "s", "/n", opt)
		if !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", words, err)
		}
	}
	if len(d.attached) != 1 {
		t.Errorf("%d calls", len(d.attached))
	}
}

func TestServiceHostPorts(t *testing.T) {
	netns := strings.Split(os.Getenv("CNIPROXY_NETNS"), ":")
	if len(netns) != 2 {
		t.Fatal("CNIPROXY_NETNS does not name two namespaces")
	}
	c := at(t, os.Getenv(socketVariable))
	ctx := context.Background()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	port := int32(busy.Addr().(*net.TCPAddr).Port)
	web := mapped(8080, 80, "TCP", "")
	if _, err := c.Setup(ctx, "go-a", netns[0], web); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Setup(ctx, "go-a", netns[0], web); err != nil {
		t.Errorf("again: %v", err)
	}
	for _, refused := range []struct {
		opt   NamespaceOpts
		code  codes.Code
		words []string
	}{
		{web, codes.AlreadyExists, []string{"tcp port 8080", "go-a"}},
		{mapped(port, 80, "tcp", ""), codes.FailedPrecondition, []string{fmt.Sprintf("tcp port %d", port), "listens"}},
		{mapped(80, 80, "tcp", "192.0.2.1"), codes.InvalidArgument, []string{"192.0.2.1", "not an address of this node"}},
		{mapped(80, 80, "tcp", "::1"), codes.InvalidArgument, []string{"::1"}},
	} {
		_, err := c.Setup(ctx, "go-b", netns[1], refused.opt)
		if status.Code(err) != refused.code {
			t.Errorf("%v is expected: %v", refused.code, err)
			continue
		}
		for _, word := range append(refused.words, `setup "go-b"`) {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("without %q: %v", word, err)
			}
		}
	}
	// The port is free as soon as Remove returns.
	if err := c.Remove(ctx, "go-a", netns[0]); err != nil {
		t.Error(err)
	}
	if _, err := c.Setup(ctx, "go-b", netns[1], web); err != nil {
		t.Errorf("after Remove: %v", err)
	}
	if err := c.Remove(ctx, "go-b", ""); err != nil {
		t.Error(err)
	}
}
