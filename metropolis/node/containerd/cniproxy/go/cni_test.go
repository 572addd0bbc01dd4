// SPDX-License-Identifier: Apache-2.0

package cni

// With a service that can be away, late, wrong and back: TestClient*. With the
// real one at CNIPROXY_SOCKET, and namespaces in CNIPROXY_NETNS: TestService*.

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	pb "metropolis/node/core/network/workloads/spec"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// double is a service that answers as it is told.
type double struct {
	pb.UnimplementedWorkloadNetworkingServer
	mu       sync.Mutex
	attached []*pb.AttachRequest
	detached []*pb.DetachRequest
	answer   *pb.AttachResponse
	fail     error
	hang     chan struct{}
}

func (d *double) outcome(ctx context.Context) error {
	d.mu.Lock()
	hang, fail := d.hang, d.fail
	d.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fail
}

func (d *double) Attach(ctx context.Context, r *pb.AttachRequest) (*pb.AttachResponse, error) {
	d.mu.Lock()
	d.attached = append(d.attached, r)
	d.mu.Unlock()
	return d.answer, d.outcome(ctx)
}

func (d *double) Detach(ctx context.Context, r *pb.DetachRequest) (*pb.DetachResponse, error) {
	d.mu.Lock()
	d.detached = append(d.detached, r)
	d.mu.Unlock()
	return &pb.DetachResponse{}, d.outcome(ctx)
}

func (d *double) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &pb.StatusResponse{}, d.fail
}

func good() *pb.AttachResponse {
	return &pb.AttachResponse{
		Ip:            [][]byte{{10, 1, 2, 3}, net.ParseIP("fd00::7")},
		Mac:           []byte{2, 0, 0, 0, 0, 1},
		HostInterface: "wl0",
		Gateway:       [][]byte{{169, 254, 77, 1}, net.ParseIP("fe80::1")},
		Routes: []*pb.Route{
			{Destination: []byte{169, 254, 77, 1}, PrefixLength: 32},
			{Destination: make([]byte, 4), Gateway: []byte{169, 254, 77, 1}},
			{Destination: make([]byte, 16), Gateway: net.ParseIP("fe80::1")},
		},
		Mtu: 1500,
	}
}

// serve listens at path until stop is called.
func serve(t *testing.T, path string, d *double) (stop func()) {
	t.Helper()
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterWorkloadNetworkingServer(server, d)
	done := make(chan struct{})
	go func() {
		_ = server.Serve(listener)
		close(done)
	}()
	return func() {
		server.Stop()
		<-done
	}
}

// at makes a client as CRI does, of the socket at path.
func at(t *testing.T, path string) CNI {
	t.Helper()
	t.Setenv(socketVariable, path)
	c, err := New(WithMinNetworkCount(2), WithPluginConfDir(""),
		WithPluginMaxConfNum(1), WithPluginDir([]string{"/opt/cni/bin"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Load(WithLoNetwork, WithDefaultConf); err != nil {
		t.Fatal(err)
	}
	return c
}

func socket(t *testing.T) string {
	t.Helper()
	directory, err := os.MkdirTemp("", "cni") // t.TempDir() may be too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	return filepath.Join(directory, "s")
}

func TestClientAway(t *testing.T) {
	c := at(t, socket(t))
	if err := c.Status(); !errors.Is(err, ErrCNINotInitialized) {
		t.Errorf("Status: %v", err)
	}
	_, err := c.Setup(context.Background(), "a", "/n")
	if !errors.Is(err, ErrCNINotInitialized) || !strings.Contains(err.Error(), "cni plugin not initialized") {
		t.Errorf("Setup: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := c.Remove(ctx, "a", ""); err == nil {
		t.Error("Remove succeeded without a service")
	}
}

func TestClientNotReady(t *testing.T) {
	d := &double{answer: good(), fail: status.Error(codes.Unavailable, "no prefix yet")}
	path := socket(t)
	defer serve(t, path, d)()
	c := at(t, path)
	for name, err := range map[string]error{
		"Status": c.Status(),
		"Setup":  func() error { _, err := c.Setup(context.Background(), "a", "/n"); return err }(),
	} {
		if !errors.Is(err, ErrCNINotInitialized) || !strings.Contains(err.Error(), "no prefix yet") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClientRemoveWaitsForTheService(t *testing.T) {
	d := &double{}
	path := socket(t)
	c := at(t, path)
	removed := make(chan error)
	go func() { removed <- c.Remove(context.Background(), "a", "") }()
	select {
	case err := <-removed:
		t.Fatalf("Remove returned %v without a service", err)
	case <-time.After(3 * retryPause):
	}
	defer serve(t, path, d)()
	if err := <-removed; err != nil {
		t.Error(err)
	}
	if len(d.detached) != 1 || d.detached[0].WorkloadId != "a" || d.detached[0].Netns != nil {
		t.Errorf("asked: %v", d.detached)
	}
}

func TestClientFindsARestartedService(t *testing.T) {
	path := socket(t)
	c := at(t, path)
	for range 3 {
		stop := serve(t, path, &double{answer: good()})
		deadline := time.Now().Add(10 * time.Second)
		for c.Status() != nil && time.Now().Before(deadline) {
		}
		if _, err := c.Setup(context.Background(), "a", "/n"); err != nil {
			t.Error(err)
		}
		stop()
		if err := c.Status(); !errors.Is(err, ErrCNINotInitialized) {
			t.Errorf("Status after the end: %v", err)
		}
	}
}

func TestClientRefusals(t *testing.T) {
	d := &double{answer: good(), fail: status.Error(codes.ResourceExhausted, "10.0.0.0/30 is full")}
	path := socket(t)
	defer serve(t, path, d)()
	c := at(t, path)
	_, err := c.Setup(context.Background(), "a", "/n")
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), `setup "a" at "/n"`) {
		t.Errorf("Setup: %v", err)
	}
	// An answer: it is not tried again.
	if err := c.Remove(context.Background(), "a", "/n"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("Remove: %v", err)
	}
	if len(d.detached) != 1 || d.detached[0].Netns.NetnsPath != "/n" {
		t.Errorf("asked: %v", d.detached)
	}
}

func TestClientHangingSetupHoldsUpNobody(t *testing.T) {
	d := &double{answer: good(), hang: make(chan struct{})}
	path := socket(t)
	defer serve(t, path, d)()
	c := at(t, path)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	hung := make(chan error)
	go func() {
		_, err := c.Setup(ctx, "a", "/n")
		hung <- err
	}()
	if err := c.Status(); err != nil {
		t.Errorf("Status while a Setup hangs: %v", err)
	}
	if err := <-hung; status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("Setup past its deadline: %v", err)
	}
	close(d.hang)
	if err := c.Remove(context.Background(), "a", "/n"); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

func TestClientRequest(t *testing.T) {
	d := &double{answer: good()}
	path := socket(t)
	defer serve(t, path, d)()
	c := at(t, path)
	result, err := c.SetupSerially(context.Background(), "sandbox", "/n",
		WithLabels(map[string]string{"K8S_POD_NAME": "p\xff"}),
		WithCapability(podAnnotations, map[string]string{"a": "b"}),
		WithCapabilityPortMap([]PortMapping{{8080, 80, "TCP", "::1"}, {53, 53, "udp", "127.0.0.1"}}),
		WithCapabilityBandWidth(BandWidth{1, 2, 3, 4}),
		WithCapabilityDNS(DNS{Servers: []string{"10.0.0.1"}, Searches: []string{"x"}, Options: []string{"o"}}),
		WithCapabilityCgroupPath("/kubepods/x"))
	if err != nil {
		t.Fatal(err)
	}
	sent := d.attached[0]
	if sent.WorkloadId != "sandbox" || sent.Netns.NetnsPath != "/n" || sent.Netns.IfName != "eth0" ||
		sent.Labels["K8S_POD_NAME"] != "p\uFFFD" || sent.Annotations["a"] != "b" ||
		len(sent.PortMapping) != 2 || sent.PortMapping[0].Protocol != "tcp" ||
		len(sent.PortMapping[0].HostIp) != 16 || len(sent.PortMapping[1].HostIp) != 4 ||
		sent.PortMapping[0].HostPort != 8080 || sent.PortMapping[0].ContainerPort != 80 ||
		sent.Bandwidth.IngressRate != 1 || sent.Bandwidth.IngressBurst != 2 ||
		sent.Bandwidth.EgressRate != 3 || sent.Bandwidth.EgressBurst != 4 ||
		sent.Dns.Servers[0] != "10.0.0.1" || sent.CgroupPath != "/kubepods/x" {
		t.Errorf("sent: %v", sent)
	}
	if result.DNS[0].Nameservers[0] != "10.0.0.1" {
		t.Errorf("DNS: %v", result.DNS)
	}
	for name, opt := range map[string]NamespaceOpts{
		"capability": WithCapability("ipRanges", 1),
		"host IP":    WithCapabilityPortMap([]PortMapping{{1, 1, "tcp", "nowhere"}}),
		"port":       WithCapabilityPortMap([]PortMapping{{-1, 1, "tcp", ""}}),
	} {
		if _, err := c.Setup(context.Background(), "s", "/n", opt); !errors.Is(err, ErrInvalidConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The JSON that containerd stores: as go-cni's, both ways.
func TestClientResult(t *testing.T) {
	made, err := newResult("/n", nil, good())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"Interfaces":{"eth0":{"IPConfigs":[{"IP":"10.1.2.3","Gateway":"169.254.77.1"},` +
		`{"IP":"fd00::7","Gateway":"fe80::1"}],"Mac":"02:00:00:00:00:01","Sandbox":"/n","PciID":"","SocketPath":""},` +
		`"wl0":{"IPConfigs":null,"Mac":"` + firstHopMAC + `","Sandbox":"","PciID":"","SocketPath":""}},` +
		`"DNS":[{}],"Routes":[{"dst":"169.254.77.1/32","scope":253},{"dst":"0.0.0.0/0","gw":"169.254.77.1"},` +
		`{"dst":"::/0","gw":"fe80::1"}]}`
	if string(text) != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
	var again Result
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	if ip := again.Interfaces["eth0"].IPConfigs[1].IP.String(); ip != "fd00::7" {
		t.Errorf("IP %s", ip)
	}
	// What stock containerd left behind, with the bridge and loopback plugins.
	stock := `{"Interfaces":{"cni0":{"IPConfigs":null,"Mac":"aa:aa:aa:aa:aa:aa","Sandbox":"","PciID":"","SocketPath":""},` +
		`"lo":{"IPConfigs":[{"IP":"127.0.0.1","Gateway":""}],"Mac":"00:00:00:00:00:00","Sandbox":"/n","PciID":"","SocketPath":""}},` +
		`"DNS":[{},{"nameservers":["1.1.1.1"]}],"Routes":[{"dst":"0.0.0.0/0","mtu":1400}]}`
	if err := json.Unmarshal([]byte(stock), &again); err != nil {
		t.Error(err)
	}
}

func TestClientGarbage(t *testing.T) {
	for name, spoil := range map[string]func(*pb.AttachResponse){
		"no address":   func(r *pb.AttachResponse) { r.Ip = nil },
		"address":      func(r *pb.AttachResponse) { r.Ip[0] = []byte{1} },
		"gateway":      func(r *pb.AttachResponse) { r.Gateway[0] = nil },
		"route":        func(r *pb.AttachResponse) { r.Routes[0].Destination = nil },
		"route prefix": func(r *pb.AttachResponse) { r.Routes[0].PrefixLength = 1 << 31 },
	} {
		response := good()
		spoil(response)
		if _, err := newResult("/n", nil, response); !errors.Is(err, ErrInvalidResult) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClientGetConfig(t *testing.T) {
	text, err := json.Marshal(at(t, socket(t)).GetConfig())
	if err != nil {
		t.Fatal(err)
	}
	want := `{"PluginDirs":["/opt/cni/bin"],"PluginConfDir":"","PluginMaxConfNum":1,"Prefix":"eth",` +
		`"Networks":[{"Config":{"Name":"metropolis","CNIVersion":"1.1.0"},"IFName":"eth0"}]}`
	if string(text) != want {
		t.Errorf("got %s", text)
	}
}

func TestServiceLife(t *testing.T) {
	netns := strings.Split(os.Getenv("CNIPROXY_NETNS"), ":")
	if len(netns) != 2 {
		t.Fatal("CNIPROXY_NETNS does not name two namespaces")
	}
	c := at(t, os.Getenv(socketVariable))
	ctx := context.Background()
	if err := c.Status(); err != nil {
		t.Fatal(err)
	}
	first, err := c.Setup(ctx, "go-a", netns[0], WithLabels(map[string]string{"K8S_POD_NAME": "a"}))
	if err != nil {
		t.Fatal(err)
	}
	if found := first.Interfaces["eth0"].IPConfigs; len(found) != 2 {
		t.Errorf("addresses: %v", found)
	}
	again, err := c.Setup(ctx, "go-a", netns[0])
	one, _ := json.Marshal(first)
	two, _ := json.Marshal(again)
	if err != nil || string(one) != string(two) {
		t.Errorf("again: %s, %v", two, err)
	}
	// A sandbox without a namespace, and ports that the service has not.
	if _, err := c.Setup(ctx, "go-b", "/nowhere"); status.Code(err) != codes.NotFound {
		t.Errorf("no namespace: %v", err)
	}
	_, err = c.Setup(ctx, "go-b", netns[1], WithCapabilityPortMap([]PortMapping{{8080, 80, "tcp", ""}}))
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("port mapping: %v", err)
	}
	// Another's namespace leaves it alone; its id alone is enough.
	if err := c.Remove(ctx, "go-a", netns[1]); err != nil {
		t.Error(err)
	}
	if again, err := c.Setup(ctx, "go-a", netns[0]); err != nil || again.Interfaces["eth0"].Mac != first.Interfaces["eth0"].Mac {
		t.Errorf("after another's Remove: %v, %v", again, err)
	}
	for range 2 {
		if err := c.Remove(ctx, "go-a", ""); err != nil {
			t.Error(err)
		}
	}
	if err := c.Remove(ctx, "never-there", ""); err != nil {
		t.Error(err)
	}
}
